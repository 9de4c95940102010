"""The tables of `bench swap`. They read the result by its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inference_server.bench.report import number

_COLUMNS = (
    ("trace", "trace"),
    ("seed", "seed"),
    ("policy", "policy"),
    ("completed", "answered"),
    ("failed", "failed"),
    ("swaps", "swaps"),
    ("wakes", "of them wakes"),
    ("wasted_loads", "wasted"),
    ("p50_wait_ms", "wait p50 ms"),
    ("p99_wait_ms", "p99"),
    ("duration", "s"),
)


def print_swap(console: Console, result: Mapping[str, object]) -> None:
    """The costs, a row per trial, the comparison, then what went wrong and what to know."""
    for line in _costs(result):
        console.print(line)
    trials = _rows(result, "trials")
    console.print(_table("every request waits for its first token", _COLUMNS, trials))
    for row in _rows(result, "medians"):
        console.print(
            f"{row['trace']}, median over its seeds: {number(row['swaps_ratio'])} x fewer swaps than plain "
            f"LRU, at {number(row['p99_wait_ratio'])} x its p99 wait"
        )
    for trial in trials:
        errors = trial["errors"]
        for error, count in errors.items() if isinstance(errors, Mapping) else ():
            console.print(
                f"[red]{trial['trace']}, {trial['policy']}: {count} failed:[/red] {escape(str(error))}"
            )
    notes = result["notes"]
    for note in notes if isinstance(notes, Sequence) else ():
        console.print(f"note: {escape(str(note))}")


def _costs(result: Mapping[str, object]) -> list[str]:
    budget = (
        "" if result["budget_bytes"] is None else f" under a budget of {_mebibytes(result['budget_bytes'])}"
    )
    return [
        f"{number(result['num_models'])} models of {_mebibytes(result['model_bytes'])}, "
        f"{number(result['num_resident'])} of which fit{budget}",
        f"cold load to first token: p50 {number(result['p50_cold_ms'])} ms, "
        f"p99 {number(result['p99_cold_ms'])} ms (of {number(result['num_cold'])})",
        f"wake to first token: p50 {number(result['p50_wake_ms'])} ms, "
        f"p99 {number(result['p99_wake_ms'])} ms (of {number(result['num_wake'])})",
        f"the resident models serve {number(result['capacity'])} requests/s together; "
        f"{number(result['request_rate'])} arrive",
    ]


def _mebibytes(num_bytes: object) -> str:
    return f"{int(str(num_bytes)) / 2**20:,.0f} MiB"


def _table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, object]]) -> Table:
    table = Table(title=title)
    for key, heading in columns:
        table.add_column(heading, justify="left" if key in ("trace", "policy") else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key, _ in columns))
    return table


def _cell(value: object) -> str:
    return escape(value) if isinstance(value, str) else number(value)


def _rows(result: Mapping[str, object], name: str) -> Sequence[Mapping[str, object]]:
    rows = result[name]
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
