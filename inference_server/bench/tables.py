"""The tables of each scenario. They read results by their names and know nothing of how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inference_server.bench.report import number
from inference_server.bench.statistics import PERCENTILES

TITLES = {
    "ttft": "first token",
    "tpot": "per output token",
    "itl": "between texts",
    "e2el": "whole answer",
}
_COUNTS = (
    ("completed", "requests completed", ""),
    ("failed", "requests failed", ""),
    ("duration", "duration", "s"),
    ("max_concurrent_requests", "most requests at once", ""),
    ("total_input_tokens", "input tokens", ""),
    ("total_cached_tokens", "input tokens from a prefix cache", ""),
    ("total_output_tokens", "output tokens", ""),
    ("request_throughput", "requests", "per s"),
    ("request_goodput", "requests within the goals", "per s"),
    ("output_throughput", "output tokens", "per s"),
    ("total_token_throughput", "input and output tokens", "per s"),
)
_LEVEL_COLUMNS = (
    ("max_concurrency", "streams"),
    ("output_throughput", "output tok/s"),
    ("total_token_throughput", "with input"),
    ("request_throughput", "requests/s"),
    ("median_ttft_ms", "TTFT p50 ms"),
    ("p99_ttft_ms", "p99"),
    ("median_tpot_ms", "ms per token p50"),
    ("p99_tpot_ms", "p99"),
    ("failed", "failed"),
)
_STAGES = (("live_s", "/health/live"), ("ready_s", "ready"), ("first_answer_s", "first answer"))


def print_result(console: Console, result: Mapping[str, object], metrics: Sequence[str]) -> None:
    """One load: counts, latencies, then what went wrong and what to know."""
    console.print(_counts_table(result))
    console.print(_latency_table(result, metrics))
    _print_remarks(console, [result])


def print_levels(
    console: Console, result: Mapping[str, object], levels: Sequence[Mapping[str, object]]
) -> None:
    """A row per number of streams, then what went wrong and what to know."""
    table = Table(title=_title(result))
    for _, heading in _LEVEL_COLUMNS:
        table.add_column(heading, justify="right", min_width=5)
    for level in levels:
        table.add_row(*(number(level.get(key)) for key, _ in _LEVEL_COLUMNS))
    console.print(table)
    _print_remarks(console, levels)


def print_startup(console: Console, result: Mapping[str, object]) -> None:
    """A row per start: seconds from the start of the process."""
    table = Table(title=escape(f"starts of {result['model']}, seconds from the start of the process"))
    table.add_column("start")
    for _, heading in _STAGES:
        table.add_column(heading, justify="right")
    for kind in ("cold", "warm"):
        starts = result[kind]
        for start in starts if isinstance(starts, Sequence) else ():
            table.add_row(kind, *(number(start[key]) for key, _ in _STAGES))
    console.print(table)


def _title(result: Mapping[str, object]) -> str:
    return escape(f"{result.get('model', '')} at {result.get('base_url', '')}")


def _print_remarks(console: Console, results: Sequence[Mapping[str, object]]) -> None:
    """Errors of every result; notes once each."""
    noted: dict[str, None] = {}
    for result in results:
        errors, notes = result.get("errors"), result.get("notes")
        for error, count in errors.items() if isinstance(errors, Mapping) else ():
            console.print(f"[red]{count} failed:[/red] {escape(str(error))}")
        noted |= dict.fromkeys(map(str, notes)) if isinstance(notes, Sequence) else {}
    for note in noted:
        console.print(f"note: {escape(note)}")


def _counts_table(result: Mapping[str, object]) -> Table:
    table = Table(title=_title(result), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for key, title, unit in _COUNTS:
        if result.get(key) is not None:
            table.add_row(title, number(result[key]), unit)
    return table


def _latency_table(result: Mapping[str, object], metrics: Sequence[str]) -> Table:
    columns = ("mean", "std", *(f"p{rank}" for rank in PERCENTILES))
    table = Table("milliseconds")
    for column in columns:
        table.add_column(column, justify="right")
    for name in metrics:
        cells = [number(result.get(f"{column}_{name}_ms")) for column in columns]
        table.add_row(f"{TITLES[name]} ({name})", *cells)
    return table
