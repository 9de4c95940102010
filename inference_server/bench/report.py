"""How a result is shown and kept: a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inference_server.bench.statistics import PERCENTILES

_TITLES = {
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
    ("total_output_tokens", "output tokens", ""),
    ("request_throughput", "requests", "per s"),
    ("request_goodput", "requests within the goals", "per s"),
    ("output_throughput", "output tokens", "per s"),
    ("total_token_throughput", "input and output tokens", "per s"),
)


def print_result(console: Console, result: Mapping[str, object], metrics: Sequence[str]) -> None:
    """Two tables, then what went wrong and what to know."""
    console.print(_counts_table(result))
    console.print(_latency_table(result, metrics))
    errors = result.get("errors")
    if isinstance(errors, Mapping):
        for error, count in errors.items():
            console.print(f"[red]{count} failed:[/red] {escape(str(error))}")
    notes = result.get("notes")
    if isinstance(notes, Sequence):
        for note in notes:
            console.print(f"note: {escape(str(note))}")


def to_json(result: Mapping[str, object]) -> str:
    """One JSON object, its keys in the order of the result."""
    return json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)


def save_result(path: Path, result: Mapping[str, object]) -> None:
    """Write the result as JSON, whole or not at all.

    Raises:
        OSError: it cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(to_json(result) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _counts_table(result: Mapping[str, object]) -> Table:
    table = Table(
        title=escape(f"{result.get('model', '')} at {result.get('base_url', '')}"), show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for key, title, unit in _COUNTS:
        if result.get(key) is not None:
            table.add_row(title, _number(result[key]), unit)
    return table


def _latency_table(result: Mapping[str, object], metrics: Sequence[str]) -> Table:
    columns = ("mean", "std", *(f"p{rank}" for rank in PERCENTILES))
    table = Table("milliseconds")
    for column in columns:
        table.add_column(column, justify="right")
    for name in metrics:
        cells = [_number(result.get(f"{column}_{name}_ms")) for column in columns]
        table.add_row(f"{_TITLES[name]} ({name})", *cells)
    return table


def _number(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
