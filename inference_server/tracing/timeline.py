"""The times and counts of one request, as whoever serves it writes them down. Knows no clock, text or HTTP.

Owner: the request. Times are seconds on the server's monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

CANCELLED = "cancelled"  # stands for the code of an error where the client left
PhaseName = Literal["queue", "fetch", "load", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of a request's life.

    queue: it waits for a place, for its model's turn or for memory, and is encoded; fetch: its model's files
    are brought and converted; load: its model is loaded or woken; prefill: from its submission to the first
    token; decode: from there to its end.
    """

    name: PhaseName
    start_s: float
    end_s: float


@dataclass(slots=True)
class Timeline:
    """What became of one request for a model; a request for anything else leaves it empty.

    `error` is the code of what it failed with, if it did. `num_cached_tokens` are part of the prompt's.
    """

    model: str = ""  # as configured
    error: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    _open: tuple[PhaseName, float] | None = None

    @property
    def phase(self) -> PhaseName | None:
        """What it is in now."""
        return None if self._open is None else self._open[0]

    def enter(self, name: PhaseName, now_s: float) -> None:
        """It is in this phase from now on; one in which it is already goes on."""
        if self.phase != name:
            self.leave(now_s)
            self._open = (name, now_s)

    def leave(self, now_s: float) -> None:
        """It is over, or between two phases."""
        if self._open is not None:
            self.phases.append(Phase(*self._open, now_s))
            self._open = None

    def seconds(self) -> dict[PhaseName, float]:
        """How long it was in each of the phases that it was in, in the order of their beginnings."""
        spent: dict[PhaseName, float] = {}
        for phase in self.phases:
            spent[phase.name] = spent.get(phase.name, 0.0) + phase.end_s - phase.start_s
        return spent

    @property
    def ttft_s(self) -> float | None:
        """Seconds from its arrival to its first token; None if there was none."""
        first = next((phase for phase in self.phases if phase.name == "decode"), None)
        return None if first is None else first.start_s - self.phases[0].start_s
