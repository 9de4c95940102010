"""What the prefix cache is worth: TTFT of requests that share a system prompt, with the cache and without.

Starts a server twice. Each answers one unmeasured request, then the measured ones; all begin with the same
system prompt of about 1,000 tokens. Goal: TTFT p50 at least five times lower. Exit status 1: a request
failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from inference_server.bench.measurement import measure, result_of
from inference_server.bench.options import LoadOptions, ReportOptions
from inference_server.bench.report import failures
from inference_server.bench.server_process import free_port
from inference_server.bench.statistics import Result
from inference_server.bench.target import HelixFlowLaunch, Target, first_model, own_server

REPOSITORY = Path(__file__).parent.parent
GOAL = 5.0
CACHES = {"on": "--enable-prefix-caching", "off": "--no-enable-prefix-caching"}
Results = dict[str, dict[int, Result]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "models.yaml")
    parser.add_argument("--model", help="default: the configuration's first that is loaded")
    parser.add_argument("--prefix-tokens", type=int, default=1000, help="of the system prompt; default: 1000")
    parser.add_argument("--requests", type=int, default=16, help="of each level; default: 16")
    parser.add_argument(
        "--levels", type=int, nargs="+", default=[1, 16], help="requests at once; default: 1 16"
    )
    arguments = parser.parse_args(argv)
    results = {
        name: measured(arguments.config, flag, arguments.model, arguments.levels, loads_of(arguments))
        for name, flag in CACHES.items()
    }
    print(table(results))
    return failures([result for levels in results.values() for result in levels.values()])


def loads_of(arguments: argparse.Namespace) -> list[LoadOptions]:
    """A load for each level: a question of about 50 tokens behind the shared prompt, 16 tokens out."""
    return [
        LoadOptions(
            num_prompts=arguments.requests,
            max_concurrency=level,
            prefix_len=arguments.prefix_tokens,
            input_len=50,
            output_len=16,
            ignore_eos=True,
            seed=level,
        )
        for level in arguments.levels
    ]


def measured(
    config: Path, flag: str, model: str | None, levels: Sequence[int], loads: Sequence[LoadOptions]
) -> dict[int, Result]:
    """Every level against one server that has `flag`."""
    with own_server(HelixFlowLaunch(free_port(), ("--config", str(config), flag))) as server:
        target = Target(server.base_url, model or first_model(server.base_url, None))
        return {
            level: result_of(measure(target, load), ReportOptions())
            for level, load in zip(levels, loads, strict=True)
        }


def table(results: Results) -> str:
    """A row for each level and cache, and the ratio of the two."""
    lines = [
        "| at once | prefix cache | TTFT p50 ms | TTFT p99 ms | cached tokens per request | failed |",
        "|---|---|---|---|---|---|",
    ]
    for level in results["on"]:
        for name in CACHES:
            result = results[name][level]
            cached = int(str(result["total_cached_tokens"])) / max(1, int(str(result["completed"])))
            lines.append(
                f"| {level} | {name} | {_figure(result, 'p50_ttft_ms'):.1f} "
                f"| {_figure(result, 'p99_ttft_ms'):.1f} | {cached:.0f} | {result['failed']} |"
            )
        ratio = _figure(results["off"][level], "p50_ttft_ms") / _figure(results["on"][level], "p50_ttft_ms")
        verdict = "met" if ratio >= GOAL else "missed"
        lines.append(f"| {level} | off ÷ on | **{ratio:.1f}** (goal {GOAL:g}: {verdict}) | | | |")
    return "\n".join(lines)


def _figure(result: Result, key: str) -> float:
    value = result[key]
    return float(value) if isinstance(value, int | float) else float("nan")


if __name__ == "__main__":
    sys.exit(main())
