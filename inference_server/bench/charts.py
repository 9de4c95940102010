"""Line and scatter charts as SVG text, for a page that needs nothing from elsewhere. Pure; no benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 16, 44
_COLOURS = ("#3b7dd8", "#d9772b", "#3f9d5c", "#a15bc0", "#c44e52")
_MAX_TICKS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name. `line` connects them in their order; `dots` marks each."""

    name: str
    points: Sequence[Point]
    line: bool = True
    dots: bool = True


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values from 0 to `top` onto pixels."""

    top: float
    start_px: float
    end_px: float
    min_step: float = 0.0

    def px(self, value: float) -> float:
        return round(self.start_px + (self.end_px - self.start_px) * value / self.top, 1)

    def ticks(self) -> list[float]:
        step = max(tick_step(self.top), self.min_step)
        return [step * index for index in range(math.floor(self.top / step + 1e-9) + 1)]


def chart(
    title: str, x_title: str, y_title: str, series: Sequence[Series], *, min_x_step: float = 0.0
) -> str:
    """One figure with its caption; both axes start at 0. Says so where there are no points."""
    points = [point for each in series for point in each.points]
    if not points:
        return f"<figure><figcaption>{escape(title)}</figcaption><p>no values</p></figure>"
    x_axis = _Axis(_top(x for x, _ in points), _LEFT, _WIDTH - _RIGHT, min_x_step)
    y_axis = _Axis(_top(y for _, y in points), _HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(x_axis, y_axis), *_titles(x_title, y_title)]
    for index, each in enumerate(series):
        parts += _drawn(each, _COLOURS[index % len(_COLOURS)], x_axis, y_axis)
    return (
        f"<figure><figcaption>{escape(title)}{_legend(series)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def tick_step(top: float) -> float:
    """1, 2 or 5 times a power of ten, so that at most a handful of ticks lie between 0 and `top`."""
    rough = top / _MAX_TICKS
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def label(value: float) -> str:
    """A figure for a tick or a hint, without needless digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _top(values: object) -> float:
    highest = max(values)  # type: ignore[call-overload]
    return float(highest) * 1.05 if highest > 0 else 1.0


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for value in x_axis.ticks():
        x = x_axis.px(value)
        parts.append(f'<line class="grid" x1="{x}" y1="{_TOP}" x2="{x}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{label(value)}</text>')
    for value in y_axis.ticks():
        y = y_axis.px(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{label(value)}</text>')
    return parts


def _titles(x_title: str, y_title: str) -> list[str]:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_title)}</text>",
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{escape(y_title)}</text>",
    ]


def _drawn(series: Series, colour: str, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    places = [(x_axis.px(x), y_axis.px(y)) for x, y in series.points]
    parts = []
    if series.line and len(places) > 1:
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    if series.dots:
        for (x, y), (x_value, y_value) in zip(places, series.points, strict=True):
            hint = f"{escape(series.name)}: {label(x_value)}, {label(y_value)}"
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"><title>{hint}</title></circle>')
    return parts


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    names = [
        f'<span class="key"><i style="background:{_COLOURS[index % len(_COLOURS)]}"></i>'
        f"{escape(each.name)}</span>"
        for index, each in enumerate(series)
    ]
    return "".join(names)
