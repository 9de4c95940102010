"""Output throughput at several numbers of streams, against a server of its own. `make bench` runs it.

Prompts of about 150 tokens, 64 tokens out, end-of-sequence ignored, closed loop. Prints one row per level
and the ratio of each level's throughput to that of one stream.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inference_server.bench.measurement import measure, result_of
from inference_server.bench.options import LoadOptions, ReportOptions
from inference_server.bench.report import failures
from inference_server.bench.server_process import free_port
from inference_server.bench.statistics import Result
from inference_server.bench.target import HelixFlowLaunch, Target, own_server

REPOSITORY = Path(__file__).parent.parent


def main() -> int:
    """Measure, print, and end the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(REPOSITORY / "models.yaml"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--requests-per-stream", type=int, default=4)
    arguments = parser.parse_args()
    with own_server(HelixFlowLaunch(free_port(), ("--config", arguments.config))) as server:
        target = Target(server.base_url, arguments.model)
        level_of(target, 2, 2)  # warm up
        results = {
            level: level_of(target, level, max(4, level * arguments.requests_per_stream))
            for level in arguments.levels
        }
    print_table(results)
    return failures(list(results.values()))


def level_of(target: Target, streams: int, num_prompts: int) -> Result:
    """One closed-loop level."""
    load = LoadOptions(num_prompts=num_prompts, max_concurrency=streams, ignore_eos=True)
    return result_of(measure(target, load), ReportOptions())


def print_table(results: dict[int, Result]) -> None:
    """A Markdown table."""
    throughput = {level: float(str(result["output_throughput"])) for level, result in results.items()}
    base = next(iter(throughput.values()))
    print("| streams | output tok/s | × one stream | TTFT p50 ms | ms per token p50 | failed |")
    print("|---|---|---|---|---|---|")
    for level, result in results.items():
        print(
            f"| {level} | {throughput[level]:.1f} | {throughput[level] / base:.2f} "
            f"| {result['p50_ttft_ms']:.0f} | {result['p50_tpot_ms']:.1f} | {result['failed']} |"
        )


if __name__ == "__main__":
    sys.exit(main())
