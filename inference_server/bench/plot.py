"""Pages of results: which charts a result gets. One HTML file each, inline SVG, no script, no network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from inference_server.bench.charts import Point, Series, chart, label
from inference_server.bench.client import RequestRecord
from inference_server.bench.statistics import time_per_output_token_s

_MAX_DOTS = 2000
_NUM_SLICES = 60
_STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1220px; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; }
.grid { stroke: currentColor; stroke-opacity: .14; }
.key { font-weight: 400; margin-left: .9em; white-space: nowrap; }
.key i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .35em; }
table { border-collapse: collapse; margin-top: 2rem; } td { padding: .15rem .8rem .15rem 0; }
td:last-child { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page: charts, and figures by name. `text` stands before them."""

    heading: str
    charts: Sequence[str] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
    text: str = ""


def load_page(result: Mapping[str, object], records: Sequence[RequestRecord]) -> str:
    """One load, drawn."""
    return _page(result, load_charts(records))


def load_charts(records: Sequence[RequestRecord]) -> list[str]:
    """One load: distributions of its latencies, first tokens by time, output over time."""
    done = [record for record in records if record.error is None]
    start_s = min((record.start_s for record in done), default=0.0)
    first = [(record.start_s - start_s, record.ttft_s * 1000) for record in done if record.ttft_s is not None]
    return [
        chart("Time to first token", "milliseconds", "% of requests", [_shares("TTFT", done, _ttft_s)]),
        chart("Time per output token", "milliseconds", "% of requests", [_shares("TPOT", done, _tpot_s)]),
        chart(
            "First tokens over time",
            "seconds since the first request, when sent",
            "TTFT, ms",
            [Series("TTFT", _thinned(first), line=False)],
        ),
        chart(
            "Pieces of text over time",
            "seconds since the first request",
            "per second",
            [Series("pieces per second", _rate_over_time(done, start_s), dots=False)],
        ),
    ]


def levels_page(result: Mapping[str, object], levels: Sequence[Mapping[str, object]]) -> str:
    """Several levels, drawn."""
    return _page(result, level_charts(levels))


def level_charts(levels: Sequence[Mapping[str, object]]) -> list[str]:
    """Several levels: throughput and latencies by number of streams."""
    return [
        chart(
            "Output throughput",
            "streams",
            "tokens per second",
            [_by_level("output", levels, "output_throughput")],
        ),
        chart("Time to first token", "streams", "milliseconds", _quantiles(levels, "ttft")),
        chart("Time per output token", "streams", "milliseconds", _quantiles(levels, "tpot")),
    ]


def startup_page(result: Mapping[str, object]) -> str:
    """Starts: the stages of each, cold and warm apart."""
    stages = (("live_s", "/health/live"), ("ready_s", "ready"), ("first_answer_s", "first answer"))
    charts = []
    for kind in ("cold", "warm"):
        starts = result[kind]
        rows = starts if isinstance(starts, Sequence) else ()
        series = [
            Series(name, [(number, float(row[key])) for number, row in enumerate(rows, 1)])
            for key, name in stages
        ]
        charts.append(
            chart(f"{kind.capitalize()} starts", "start", "seconds since process start", series, min_x_step=1)
        )
    return _page(result, charts)


def _ttft_s(record: RequestRecord) -> float | None:
    return record.ttft_s


def _tpot_s(record: RequestRecord) -> float | None:
    return time_per_output_token_s(record)


def _shares(
    name: str, records: Sequence[RequestRecord], value_s: Callable[[RequestRecord], float | None]
) -> Series:
    """How many per cent of the requests took at most so many milliseconds."""
    ordered = sorted(value * 1000 for record in records if (value := value_s(record)) is not None)
    points = [(value, 100 * rank / len(ordered)) for rank, value in enumerate(ordered, 1)]
    return Series(name, _thinned(points), dots=len(points) <= 100)


def _rate_over_time(records: Sequence[RequestRecord], start_s: float) -> list[Point]:
    times_s = [time_s - start_s for record in records for time_s in record.text_times_s]
    if not times_s:
        return []
    slice_s = max(max(times_s) / _NUM_SLICES, 1e-3)
    counts = Counter(math.floor(time_s / slice_s) for time_s in times_s)
    return [((index + 0.5) * slice_s, counts[index] / slice_s) for index in range(max(counts) + 1)]


def _by_level(name: str, levels: Sequence[Mapping[str, object]], key: str) -> Series:
    points = [(_figure(level["max_concurrency"]), _figure(level.get(key))) for level in levels]
    return Series(name, [point for point in points if not math.isnan(point[1])])


def _quantiles(levels: Sequence[Mapping[str, object]], metric: str) -> list[Series]:
    return [_by_level(f"p{rank}", levels, f"p{rank}_{metric}_ms") for rank in (50, 90, 99)]


def _figure(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Every n-th point and the last, so that the page stays small."""
    step = max(1, len(points) // _MAX_DOTS)
    return [*points[::step], *(points[-1:] if (len(points) - 1) % step else ())]


def _page(result: Mapping[str, object], charts: Sequence[str]) -> str:
    title = escape(
        f"{result.get('model')} at {result['base_url']}" if "base_url" in result else str(result["model"])
    )
    return _document(title, _content(charts, result))


def sections_page(title: str, sections: Sequence[Section]) -> str:
    """Several results on one page."""
    parts = [
        f"<h2>{escape(section.heading)}</h2>\n"
        + (f"<p>{escape(section.text)}</p>\n" if section.text else "")
        + _content(section.charts, section.figures)
        for section in sections
    ]
    return _document(escape(title), "".join(parts))


def _content(charts: Sequence[str], figures: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(_cell(value))}</td></tr>"
        for key, value in figures.items()
        if not isinstance(value, list | dict) and value is not None
    )
    drawn = f"<main>{''.join(charts)}</main>\n" if charts else ""
    return drawn + (f"<table>{rows}</table>\n" if rows else "")


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n{body}</html>\n"
    )


def _cell(value: object) -> str:
    return label(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
