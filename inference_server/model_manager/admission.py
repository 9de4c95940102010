"""Who gets memory next: a pure decision about one applicant, and the first-come-first-served line of them.

Owner of the line: the manager (event loop). It grants reservations and asks for evictions; it stops no worker
itself and knows nothing of loads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from inference_server.config.units import format_bytes
from inference_server.errors import InsufficientMemory
from inference_server.model_manager.budget import MemoryBudget
from inference_server.model_manager.eviction import Hold, Resident, choose_victims


@dataclass(frozen=True, slots=True)
class Grant:
    """The bytes are there."""


@dataclass(frozen=True, slots=True)
class Evict:
    """They will be, once these models have left."""

    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """They may be, once a model has left or its leases have ended."""

    is_leaving: bool  # enough is already on its way back


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing that we could wait for gives them: `obtainable_bytes` is the most there can be."""

    device: str
    needed_bytes: int
    obtainable_bytes: int


Decision = Grant | Evict | Wait | Refuse


def decide(
    needed: Mapping[str, int], available: Mapping[str, int], residents: Sequence[Resident]
) -> Decision:
    """What to do for a model that needs `needed` bytes per device while `available` are there."""
    missing = _missing(needed, available)
    if not missing:
        return Grant()
    leaving = [resident for resident in residents if resident.hold is Hold.LEAVING]
    missing = {device: num - _held(leaving, device) for device, num in missing.items()}
    missing = {device: num for device, num in missing.items() if num > 0}
    if not missing:
        return Wait(is_leaving=True)
    victims = choose_victims(residents, missing)
    if victims is not None:
        return Evict(victims)
    movable = [r for r in residents if not r.pinned and r.hold is not Hold.LEAVING]
    for device, num_bytes in missing.items():
        lacking = num_bytes - _held(movable, device)
        if lacking > 0:
            return Refuse(device, needed[device], max(0, needed[device] - lacking))
    return Wait(is_leaving=False)


def _missing(needed: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    return {
        device: num_bytes - available.get(device, 0)
        for device, num_bytes in needed.items()
        if num_bytes > available.get(device, 0)
    }


def _held(residents: Sequence[Resident], device: str) -> int:
    return sum(resident.bytes_by_device.get(device, 0) for resident in residents)


class Withdrawn(Exception):  # noqa: N818 - an outcome, not a fault
    """Nobody wants the model any more, and memory for it was not to be had."""


@dataclass(eq=False, slots=True)
class _Applicant:
    model: str
    needed: Mapping[str, int]
    is_wanted: Callable[[], bool]
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class MemoryLine:
    """First come, first served, per device: an applicant is passed only by those who share no device with it.

    `available` gives the bytes per device that may be reserved right now; `residents` who holds what;
    `evict` starts the departure of a model and returns at once. `serve` must be called whenever any of that
    changes.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        *,
        available: Callable[[], Mapping[str, int]],
        residents: Callable[[], Sequence[Resident]],
        evict: Callable[[str], None],
    ) -> None:
        self._budget = budget
        self._available = available
        self._residents = residents
        self._evict = evict
        self._line: list[_Applicant] = []
        self._is_serving = False

    def __len__(self) -> int:
        return len(self._line)

    def is_waiting(self, model: str) -> bool:
        """Whether `model` stands in the line."""
        return any(applicant.model == model for applicant in self._line)

    async def reserve(self, model: str, needed: Mapping[str, int], is_wanted: Callable[[], bool]) -> None:
        """Wait in line until `needed` bytes are reserved for `model`; evicts for it what may be evicted.

        Safe to cancel: either the reservation exists when this returns, or it does not exist at all.

        Raises:
            InsufficientMemory: the bytes can never be had, whoever leaves.
            Withdrawn: they could not be had at once, and `is_wanted` says that nobody waits any more.
        """
        applicant = _Applicant(model, needed, is_wanted)
        self._line.append(applicant)
        self.serve()
        try:
            await applicant.granted
        except asyncio.CancelledError:
            self._leave(applicant)
            raise

    def _leave(self, applicant: _Applicant) -> None:
        if applicant in self._line:
            self._line.remove(applicant)
        elif _was_granted(applicant):
            self._budget.release(applicant.model)
        self.serve()

    def serve(self) -> None:
        """Grant, evict or refuse, for everybody in the line whose turn it is."""
        if not self._line or self._is_serving:
            return
        self._is_serving = True  # evicting changes states, which calls back
        try:
            self._serve()
        finally:
            self._is_serving = False

    def _serve(self) -> None:
        taken: set[str] = set()  # devices on which somebody earlier is still waiting
        for applicant in tuple(self._line):
            if taken.isdisjoint(applicant.needed) and self._settle(applicant):
                self._line.remove(applicant)
            else:
                taken.update(applicant.needed)

    def _settle(self, applicant: _Applicant) -> bool:
        """Whether the applicant's wait is over."""
        if applicant.granted.done():  # cancelled; it is about to leave by itself
            return True
        match decide(applicant.needed, self._available(), self._residents()):
            case Grant():
                self._budget.reserve(applicant.model, applicant.needed)
                applicant.granted.set_result(None)
                return True
            case Evict(victims):
                for victim in victims:
                    self._evict(victim)
            case Refuse() as refusal:
                applicant.granted.set_exception(refused(applicant.model, refusal))
                return True
            case Wait(is_leaving=False) if not applicant.is_wanted():
                applicant.granted.set_exception(Withdrawn)
                return True
            case Wait():
                pass
        return False


def _was_granted(applicant: _Applicant) -> bool:
    future = applicant.granted
    return future.done() and not future.cancelled() and future.exception() is None


def refused(model: str, refusal: Refuse) -> InsufficientMemory:
    """The error for a model that cannot get its bytes, with both numbers."""
    return InsufficientMemory(
        f"{model!r} needs {format_bytes(refusal.needed_bytes)} on {refusal.device}, but only "
        f"{format_bytes(refusal.obtainable_bytes)} can be made free there (pinned models and other programs "
        "keep the rest)"
    )
