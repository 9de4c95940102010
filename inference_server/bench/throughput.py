"""`bench throughput`: a closed loop at several numbers of streams, one level after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inference_server.bench.measurement import measure, now, result_of
from inference_server.bench.options import LoadOptions, ReportOptions, TargetOptions
from inference_server.bench.plot import levels_page
from inference_server.bench.report import check_files, deliver, failures, progress
from inference_server.bench.statistics import Result
from inference_server.bench.tables import print_levels
from inference_server.bench.target import Target, attached

MIN_REQUESTS = 4  # a level of one stream needs some answers, too


def run_throughput(
    target: TargetOptions,
    load: LoadOptions,
    report: ReportOptions,
    *,
    levels: Sequence[int],
    requests_per_stream: int,
) -> int:
    """Measure each level, report, save. The exit status is 1 if a request failed.

    `load` gives everything but the number of requests and of streams.

    Raises:
        Unavailable: the server could not be used.
        ConfigError: a file cannot be written.
    """
    check_files(report)
    counts = [max(MIN_REQUESTS, level * requests_per_stream) for level in levels]
    with attached(target) as server, progress("requests", sum(counts)) as tick:
        loads = [
            replace(load, max_concurrency=level, num_prompts=count)
            for level, count in zip(levels, counts, strict=True)
        ]
        results = [result_of(measure(server, level, tick), report) for level in loads]
    result = _whole(server, results)
    deliver(
        result,
        report,
        show=lambda console, shown: print_levels(console, shown, results),
        draw=lambda: levels_page(result, results),
    )
    return failures(results)


def _whole(server: Target, results: Sequence[Result]) -> Result:
    best = max(results, key=lambda result: float(str(result["output_throughput"])))
    return {
        "date": now(),
        "base_url": server.base_url,
        "model": server.model,
        "best_max_concurrency": best["max_concurrency"],
        "output_throughput": best["output_throughput"],
        "total_token_throughput": best["total_token_throughput"],
        "levels": list(results),
    }
