"""Measure a server with our own load, `ab` and k6, and leave `report.html` and `results.json`.

Without --base-url it starts a server of its own with --config and ends it afterwards. `ab` and k6 are run
where they are installed; without them the report says so. The status is 1 if a request failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.performance.page import PerformanceTest, report_page
from benchmarks.performance.tools import AbLoad, ToolResult, run_ab, run_k6
from inference_server import __version__
from inference_server.bench.measurement import measure, now, result_of
from inference_server.bench.options import LoadOptions, ReportOptions, TargetOptions
from inference_server.bench.report import to_json, write_whole
from inference_server.bench.target import Target, attached
from inference_server.cli.client import normalised
from inference_server.cli.failures import ServerError
from inference_server.errors import HelixFlowError

REPOSITORY = Path(__file__).parents[2]
MIN_REQUESTS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 2 if there is nothing to measure."""
    arguments = _parser().parse_args(argv)
    try:
        test = _measured(arguments)
        folder = Path(arguments.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "results.json", to_json(test.as_result()) + "\n", "--output")
        write_whole(folder / "report.html", report_page(test), "--output")
    except (HelixFlowError, ServerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder / 'report.html'}: {test.num_failed} requests failed")
    return 1 if test.num_failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("run-performance-test.sh", description=__doc__)
    parser.add_argument("--base-url", help="the server to measure; default: one of its own")
    parser.add_argument("--config", default=str(REPOSITORY / "models.yaml"), help="for a server of its own")
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--output", default="performance-report", help="folder of the report")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16], help="numbers of streams")
    parser.add_argument("--requests-per-stream", type=int, default=4)
    parser.add_argument("--output-len", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--k6-seconds", type=int, default=20)
    parser.add_argument("--ab-requests", type=int, default=2000, help="a 20th of it for completions")
    return parser


def _measured(arguments: argparse.Namespace) -> PerformanceTest:
    options = TargetOptions(
        base_url=normalised(arguments.base_url) if arguments.base_url else None,
        model=arguments.model,
        api_key=os.environ.get("HELIXFLOW_API_KEY") or None,
        server_flags=() if arguments.base_url else ("--config", arguments.config),
    )
    with attached(options) as target:
        return _test(target, arguments)


def _test(target: Target, arguments: argparse.Namespace) -> PerformanceTest:
    report, streams = ReportOptions(), max(arguments.levels)
    loads = [
        LoadOptions(
            num_prompts=max(MIN_REQUESTS, level * arguments.requests_per_stream),
            max_concurrency=level,
            output_len=arguments.output_len,
            ignore_eos=True,
        )
        for level in arguments.levels
    ]
    _say(f"warming up {target.model} at {target.base_url}")
    measure(target, loads[0])
    levels = []
    for load in loads:
        _say(f"{load.num_prompts} requests in {load.max_concurrency} streams")
        levels.append(measure(target, load))
    detailed = max(levels, key=lambda measured: measured.load.max_concurrency or 0)
    tools = {"ab": _ab(target, arguments), "k6": _k6(target, arguments, streams)}
    return PerformanceTest(
        about=_about(target),
        levels=[result_of(measurement, report) for measurement in levels],
        load=result_of(detailed, report),
        records=detailed.outcome.records,
        tools=[result for results in tools.values() for result in results],
        missing=[name for name, results in tools.items() if not results],
    )


def _ab(target: Target, arguments: argparse.Namespace) -> list[ToolResult]:
    body = {"model": target.model, "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}
    num_requests, concurrency = arguments.ab_requests, min(16, arguments.ab_requests)
    loads = (
        AbLoad(path="/health/live", num_requests=num_requests, concurrency=concurrency),
        AbLoad(
            path="/v1/completions",
            num_requests=max(concurrency, num_requests // 20),
            concurrency=concurrency,
            body=body,
        ),
    )
    _say("ab")
    return [result for load in loads if (result := run_ab(target, load)) is not None]


def _k6(target: Target, arguments: argparse.Namespace, streams: int) -> list[ToolResult]:
    _say("k6")
    result = run_k6(target, streams=streams, duration_s=arguments.k6_seconds, max_tokens=arguments.output_len)
    return [] if result is None else [result]


def _about(target: Target) -> dict[str, object]:
    return {
        "date": now(),
        "helixflow": __version__,
        "model": target.model,
        "base_url": target.base_url,
        "measured from": f"{platform.machine()}, {os.cpu_count()} CPUs, {_cpu_name()}",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.system()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.system())


def _say(text: str) -> None:
    print(f"{text} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
