"""The side-by-side table: medians over rounds, and HelixFlow's ratios to the best peer and to each. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.rounds import Run
from benchmarks.peers.servers import Server

# Metric → (key in a result, heading, whether more is better)
METRICS: Mapping[str, tuple[str, str, bool]] = {
    "throughput": ("output_throughput", "output tok/s", True),
    "ttft": ("median_ttft_ms", "TTFT p50 ms", False),
    "tpot": ("median_tpot_ms", "ms per token p50", False),
}
Figures = dict[int, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One server's medians: per metric and number of streams, and the seconds to its first answer."""

    server: Server
    metrics: Mapping[str, Figures]
    first_answer_s: float | None


def rows_of(servers: Sequence[Server], runs: Sequence[Run], levels: Sequence[int]) -> list[Row]:
    """A row for each server; what no run of it measured is missing in it."""
    return [_row(server, [run for run in runs if run.key == server.key], levels) for server in servers]


def _row(server: Server, runs: Sequence[Run], levels: Sequence[int]) -> Row:
    metrics: dict[str, Figures] = {}
    for metric, (key, _, _) in METRICS.items():
        found = {
            level: _values(run.levels[level].get(key) for run in runs if level in run.levels)
            for level in levels
        }
        metrics[metric] = {level: statistics.median(values) for level, values in found.items() if values}
    ready = _values(run.first_answer_s for run in runs)
    return Row(server, metrics, statistics.median(ready) if ready else None)


def _values(found: Iterable[object]) -> list[float]:
    return [float(value) for value in found if isinstance(value, int | float)]


def best(rows: Sequence[Row], metric: str, level: int) -> float | None:
    """The best figure of the metric among these rows."""
    values = [row.metrics[metric][level] for row in rows if level in row.metrics[metric]]
    if not values:
        return None
    return max(values) if METRICS[metric][2] else min(values)


def ratios(row: Row, peers: Sequence[Row], levels: Sequence[int]) -> dict[str, Figures]:
    """Per metric and level: the row's figure ÷ the best of `peers`. Above 1 is good for throughput only."""
    found: dict[str, Figures] = {}
    for metric in METRICS:
        found[metric] = {}
        for level in levels:
            other = best(peers, metric, level)
            if level in row.metrics[metric] and other:
                found[metric][level] = row.metrics[metric][level] / other
    return found


def markdown(rows: Sequence[Row], levels: Sequence[int]) -> str:
    """One table: figures of every server, then HelixFlow's ratios. A cell has a figure for each level."""
    at = " / ".join(map(str, levels))
    headings = [f"{heading} at {at}" for _, heading, _ in METRICS.values()]
    lines = [
        _line(["server", "weights", *headings, "s to first answer"]),
        _line(["---"] * (len(headings) + 3)),
    ]
    for row in rows:
        cells = [_cell(row.metrics[metric], levels) for metric in METRICS]
        lines.append(_line([row.server.name, row.server.weights, *cells, _figure(row.first_answer_s)]))
    peers = [row for row in rows if not row.server.is_ours]
    for row in rows:
        if row.server.is_ours and peers:
            lines += _ratio_lines(row, peers, levels)
    return "\n".join(lines) + "\n"


def _ratio_lines(row: Row, peers: Sequence[Row], levels: Sequence[int]) -> list[str]:
    groups = [("best peer", list(peers)), *((peer.server.name, [peer]) for peer in peers)]
    lines = []
    for name, group in groups if len(peers) > 1 else groups[1:]:
        found = ratios(row, group, levels)
        ready = [peer.first_answer_s for peer in group if peer.first_answer_s]
        ready_ratio = row.first_answer_s / min(ready) if row.first_answer_s and ready else None
        cells = [_cell(found[metric], levels, digits=2) for metric in METRICS]
        title = f"{row.server.name} ÷ {name}"
        lines.append(
            _line([f"**{title}**" if len(group) > 1 else title, "", *cells, _figure(ready_ratio, 2)])
        )
    return lines


def _cell(figures: Figures, levels: Sequence[int], digits: int | None = None) -> str:
    return " / ".join(_figure(figures.get(level), digits) for level in levels)


def _figure(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "–"
    if digits is None:
        digits = 0 if value >= 1000 else 1
    return f"{value:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
