"""What a server says of its models' comings and goings: counters from /metrics, states from its event stream.

Pure: text in, values out. It knows the names that HelixFlow gives these things.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"', re.ASCII)
_SAMPLE = re.compile(
    rf"(?P<name>[a-zA-Z_:][\w:]*)\{{(?P<labels>(?:{_LABEL.pattern},?)*)\}} (?P<value>\S+)", re.ASCII
)
_LOADS = "helixflow_model_loads_total"
_LOADS_BY_SOURCE = "helixflow_model_load_duration_seconds_count"
_EVICTIONS = "helixflow_model_evictions_total"


@dataclass(frozen=True, slots=True)
class SwapCounts:
    """Since the server started, all models together. A wake is counted apart from loads."""

    loads: int
    wakes: int
    failed_loads: int
    evictions: int

    @property
    def swaps(self) -> int:
        """How often a model was brought into memory."""
        return self.loads + self.wakes

    def since(self, before: SwapCounts) -> SwapCounts:
        """What has been added."""
        return SwapCounts(
            loads=self.loads - before.loads,
            wakes=self.wakes - before.wakes,
            failed_loads=self.failed_loads - before.failed_loads,
            evictions=self.evictions - before.evictions,
        )


def counts_in(page: str) -> SwapCounts:
    """The counters on a page of /metrics; 0 where it has none."""
    totals = {"ok": 0, "failed": 0, "ram": 0, "evicted": 0}
    for name, labels, value in _samples(page):
        if name == _LOADS and labels.get("result") in totals:
            totals[labels["result"]] += int(value)
        elif name == _LOADS_BY_SOURCE and labels.get("source") == "ram":
            totals["ram"] += int(value)
        elif name == _EVICTIONS:
            totals["evicted"] += int(value)
    return SwapCounts(
        loads=totals["ok"] - totals["ram"],
        wakes=totals["ram"],
        failed_loads=totals["failed"],
        evictions=totals["evicted"],
    )


def _samples(page: str) -> Iterable[tuple[str, Mapping[str, str], float]]:
    for line in page.splitlines():
        found = _SAMPLE.fullmatch(line)
        if found is not None:
            yield found["name"], dict(_LABEL.findall(found["labels"])), float(found["value"])


@dataclass(frozen=True, slots=True)
class Stay:
    """One stay of a model in memory, in seconds on the client's clock; `end_s` None: it is still there."""

    model: str
    start_s: float
    end_s: float | None = None

    def covers(self, at_s: float) -> bool:
        """Whether it was there at that moment."""
        return self.start_s <= at_s and (self.end_s is None or at_s <= self.end_s)


def num_wasted(stays: Sequence[Stay], answers: Iterable[tuple[str, float]]) -> int:
    """Stays that ended without an answer. `answers` are (model, time of the first text)."""
    by_model: dict[str, list[float]] = {}
    for model, at_s in answers:
        by_model.setdefault(model, []).append(at_s)
    return sum(
        stay.end_s is not None and not any(stay.covers(at_s) for at_s in by_model.get(stay.model, ()))
        for stay in stays
    )
