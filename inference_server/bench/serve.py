"""`bench serve` and `bench latency`: one load against one server."""

from __future__ import annotations

from inference_server.bench.measurement import Measurement, measure, result_of
from inference_server.bench.options import LoadOptions, ReportOptions, TargetOptions
from inference_server.bench.plot import load_page
from inference_server.bench.report import check_files, deliver, failures, progress
from inference_server.bench.tables import print_result
from inference_server.bench.target import attached


def run_serve(target: TargetOptions, load: LoadOptions, report: ReportOptions) -> int:
    """Measure, report, save. The exit status is 1 if a request failed.

    Raises:
        Unavailable: the server could not be used.
        ConfigError: a file cannot be written.
    """
    check_files(report)
    with attached(target) as server, progress("requests", load.num_prompts) as tick:
        measurement = measure(server, load, tick)
    return _deliver(measurement, report)


def _deliver(measurement: Measurement, report: ReportOptions) -> int:
    result = result_of(measurement, report)
    deliver(
        result,
        report,
        show=lambda console, shown: print_result(console, shown, report.metrics),
        draw=lambda: load_page(result, measurement.outcome.records),
    )
    return failures([result])
