"""The line of models that wait for memory, served in the order in which their first request came.

Owner of the line: the manager (event loop). It grants reservations and asks for evictions; it stops no worker
itself and knows nothing of loads.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from inference_server.model_manager.admission import (
    Claim,
    Decision,
    Evict,
    Grant,
    Refuse,
    Wait,
    decide,
    refused,
)
from inference_server.model_manager.budget import MemoryBudget
from inference_server.model_manager.eviction import Resident
from inference_server.model_manager.swapping import SwapRules
from inference_server.model_manager.warm_tier import Victim

MIN_DELAY_S = 0.001  # a timer may fire a little early; it must not be set again for no time at all


class Withdrawn(Exception):  # noqa: N818 - an outcome, not a fault
    """Nobody wants the model any more, and memory for it was not to be had."""


@dataclass(eq=False, slots=True)
class _Applicant:
    """`since` says when the first who waits for the model came; None: nobody waits."""

    model: str
    total: Mapping[str, int]
    since: Callable[[], float | None]
    applied_s: float
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def since_s(self) -> float:
        since_s = self.since()
        return self.applied_s if since_s is None else since_s


class MemoryLine:
    """First come, first served, per device: an applicant is passed only by those who share no device with it.

    `available` gives the bytes per device that may be reserved right now; `residents` who holds what;
    `evict` starts the departure of models and returns at once. `serve` must be called whenever any of that
    changes; what only the time changes, the line looks after itself.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        *,
        available: Callable[[], Mapping[str, int]],
        residents: Callable[[], Sequence[Resident]],
        evict: Callable[[Sequence[Victim]], None],
        rules: SwapRules,
        clock: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.rules = rules
        self._budget = budget
        self._available = available
        self._residents = residents
        self._evict = evict
        self._clock = clock
        self._changed = changed
        self._line: list[_Applicant] = []
        self._is_serving = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._line)

    def is_waiting(self, model: str) -> bool:
        """Whether `model` stands in the line."""
        return any(applicant.model == model for applicant in self._line)

    async def reserve(self, model: str, total: Mapping[str, int], since: Callable[[], float | None]) -> None:
        """Wait in line until `model` has `total` bytes reserved; evicts for it what may be evicted.

        Safe to cancel: either the reservation is as large when this returns, or it is as it was before.

        Raises:
            InsufficientMemory: the bytes can never be had, whoever leaves.
            Withdrawn: they could not be had at once, and `since` says that nobody waits any more.
        """
        before = dict(self._budget.reservation(model))
        applicant = _Applicant(model, total, since, self._clock())
        self._line.append(applicant)
        self.serve()
        try:
            await applicant.granted
        except asyncio.CancelledError:
            self._leave(applicant, before)
            raise

    def _leave(self, applicant: _Applicant, before: Mapping[str, int]) -> None:
        if applicant in self._line:
            self._line.remove(applicant)
            self._changed()
        elif _was_granted(applicant) and before:
            self._budget.resize(applicant.model, before)
        elif _was_granted(applicant):
            self._budget.release(applicant.model)
        self.serve()

    def consider(self, model: str, total: Mapping[str, int]) -> Decision:
        """What would be done now for `model` if it came for `total` bytes and nobody stood before it."""
        others = [resident for resident in self._residents() if resident.name != model]
        now_s = self._clock()
        return decide(Claim(total, now_s), self._available(), others, self.rules, now_s)

    def serve(self) -> None:
        """Grant, evict or refuse, for everybody in the line whose turn it is."""
        if not self._line or self._is_serving:
            return
        self._is_serving = True  # evicting changes states, which calls back
        try:
            until_s = self._serve()
        finally:
            self._is_serving = False
        self._wake_at(until_s)

    def _serve(self) -> float:
        """Returns when the line must be served again though nothing has happened."""
        taken: set[str] = set()  # devices on which somebody earlier is still waiting
        until_s = math.inf
        for applicant in sorted(self._line, key=lambda applicant: applicant.since_s):
            if taken.isdisjoint(applicant.total):
                next_s = self._settle(applicant)
                if next_s is None:
                    self._line.remove(applicant)
                    self._changed()
                    continue
                until_s = min(until_s, next_s)
            taken.update(applicant.total)
        return until_s

    def _settle(self, applicant: _Applicant) -> float | None:
        """None if the applicant's wait is over; else until when it may last at least."""
        if applicant.granted.done():  # cancelled; it is about to leave by itself
            return None
        others = [resident for resident in self._residents() if resident.name != applicant.model]
        claim = Claim(self._extra(applicant), applicant.since_s)
        match decide(claim, self._available(), others, self.rules, self._clock()):
            case Grant():
                self._budget.resize(applicant.model, applicant.total)
                applicant.granted.set_result(None)
                return None
            case Evict(victims):
                self._evict(victims)
            case Refuse() as refusal:
                applicant.granted.set_exception(refused(applicant.model, refusal))
                return None
            case Wait(is_leaving=False) if applicant.since() is None:
                applicant.granted.set_exception(Withdrawn)
                return None
            case Wait(until_s=until_s):
                return until_s
        return math.inf

    def _extra(self, applicant: _Applicant) -> dict[str, int]:
        held = self._budget.reservation(applicant.model)
        return {d: max(0, num_bytes - held.get(d, 0)) for d, num_bytes in applicant.total.items()}

    def _wake_at(self, until_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until_s < math.inf:
            delay_s = max(MIN_DELAY_S, until_s - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.serve)


def _was_granted(applicant: _Applicant) -> bool:
    future = applicant.granted
    return future.done() and not future.cancelled() and future.exception() is None
