"""The report of a performance test as one HTML page. It measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.performance.tools import ToolResult
from inference_server.bench.charts import Series, chart
from inference_server.bench.client import RequestRecord
from inference_server.bench.plot import Section, level_charts, load_charts, sections_page
from inference_server.bench.statistics import Result

_LOAD_FIGURES = {
    "max_concurrency": "streams",
    "completed": "requests completed",
    "failed": "requests failed",
    "request_throughput": "requests per second",
    "output_throughput": "output tokens per second",
    "p50_ttft_ms": "first token p50, ms",
    "p99_ttft_ms": "first token p99, ms",
    "p50_tpot_ms": "per output token p50, ms",
    "p99_tpot_ms": "per output token p99, ms",
    "p50_e2el_ms": "whole answer p50, ms",
    "p99_e2el_ms": "whole answer p99, ms",
}


@dataclass(frozen=True, slots=True)
class PerformanceTest:
    """Everything that was measured. `missing`: tools that are not installed."""

    about: Mapping[str, object]
    levels: Sequence[Result]
    load: Result
    records: Sequence[RequestRecord]
    tools: Sequence[ToolResult]
    missing: Sequence[str]

    @property
    def num_failed(self) -> int:
        """Requests that failed, of all loads and tools."""
        own = [int(str(result["failed"])) for result in (*self.levels, self.load)]
        return sum(own) + sum(tool.num_failed for tool in self.tools)

    def as_result(self) -> Result:
        """For a program to read."""
        tools = [
            {"name": tool.name, "command": tool.command, "error": tool.error or None, **tool.figures}
            for tool in self.tools
        ]
        return {
            **self.about,
            "failed": self.num_failed,
            "levels": list(self.levels),
            "load": self.load,
            "tools": tools,
            "missing": list(self.missing),
        }


def report_page(test: PerformanceTest) -> str:
    """The whole page."""
    about = dict(test.about) | {"requests failed": test.num_failed}
    if test.missing:
        about["not installed, so not run"] = ", ".join(test.missing)
    streams = ", ".join(str(level["max_concurrency"]) for level in test.levels)
    sections = [
        Section("What was measured", figures=about),
        Section(f"Closed loops of {streams} streams", level_charts(test.levels)),
        Section(
            "One load in detail",
            load_charts(test.records),
            {title: test.load.get(key) for key, title in _LOAD_FIGURES.items()},
        ),
        *map(_tool_section, test.tools),
    ]
    return sections_page(f"Performance of {test.about['model']}", sections)


def _tool_section(tool: ToolResult) -> Section:
    drawn = [chart(tool.name, "milliseconds", "% of requests", [Series("time", tool.shares, dots=False)])]
    return Section(
        tool.name,
        drawn if tool.shares else (),
        dict(tool.figures) | ({"error": tool.error} if tool.error else {}),
        tool.command,
    )
