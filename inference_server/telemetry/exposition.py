"""The text page of counters, gauges and histograms, made from what they hold.

The same lines as prometheus_client's own `generate_latest` without its `_created` series (a test compares
them), in a tenth of its time: a series' name and labels are written once and kept for as long as the series.
It reads private fields of the library's; nothing else may.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast
from weakref import WeakKeyDictionary

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.utils import floatToGoString

Family = Counter | Gauge | Histogram
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class FamilyText:
    """One family's part of the page. Owner of the beginnings of its lines."""

    def __init__(self, family: Family) -> None:
        self._family = family
        name, text = family._name, family._documentation
        self._sample_name = f"{name}_total" if isinstance(family, Counter) else name
        head = text.replace("\\", r"\\").replace("\n", r"\n")
        self._head = f"# HELP {self._sample_name} {head}\n# TYPE {self._sample_name} {family._type}\n"
        self._beginnings: WeakKeyDictionary[Family, tuple[str, ...]] = WeakKeyDictionary()

    def lines(self) -> Iterator[str]:
        """The head, and a line per sample."""
        yield self._head
        for labels, series in self._series():
            beginnings = self._beginnings.get(series)
            if beginnings is None:
                beginnings = self._beginnings[series] = tuple(self._begin(labels, series))
            for beginning, value in zip(beginnings, _values(series), strict=True):
                yield beginning
                yield "0.0\n" if value == 0 else f"{_number(value)}\n"

    def _series(self) -> list[tuple[dict[str, str], Family]]:
        names = self._family._labelnames
        if not names:
            return [({}, self._family)]
        with self._family._lock:
            found = cast(dict[tuple[str, ...], Family], self._family._metrics).copy()
        return [(dict(zip(names, values, strict=True)), series) for values, series in found.items()]

    def _begin(self, labels: dict[str, str], series: Family) -> Iterator[str]:
        name = self._sample_name
        if not isinstance(series, Histogram):
            yield f"{name}{_written(labels)} "
            return
        for bound in series._upper_bounds:
            yield f"{name}_bucket{_written({**labels, 'le': _number(bound)})} "
        yield f"{name}_count{_written(labels)} "
        yield f"{name}_sum{_written(labels)} "


def _values(series: Family) -> Iterator[float]:
    """The samples' values, in the order in which their lines begin."""
    if not isinstance(series, Histogram):
        yield series._value.get()
        return
    total = 0.0
    for bucket in series._buckets:
        total += bucket.get()
        yield total
    yield total
    yield series._sum.get()


def _number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _written(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{labels[name].translate(_ESCAPES)}"' for name in sorted(labels)) + "}"
