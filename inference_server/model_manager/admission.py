"""Who gets memory next: a pure decision about one applicant. The line in which they wait is `line.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inference_server.config.units import format_bytes
from inference_server.errors import InsufficientMemory
from inference_server.model_manager.eviction import Hold, Resident, choose_victims
from inference_server.model_manager.swapping import SwapRules
from inference_server.model_manager.warm_tier import Victim, choose_sleepers


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model needs per device beyond what it has, and since when somebody waits for it (seconds)."""

    needed: Mapping[str, int]
    since_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """The bytes are there."""


@dataclass(frozen=True, slots=True)
class Evict:
    """They will be, once these models have left. Those in use finish what they have begun."""

    victims: tuple[Victim, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """They may be, once a model has left, its leases have ended, or the time is `until_s`."""

    is_leaving: bool  # enough is already on its way back
    until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing that we could wait for gives them: `obtainable_bytes` is the most there can be."""

    device: str
    needed_bytes: int
    obtainable_bytes: int


Decision = Grant | Evict | Wait | Refuse


def decide(
    claim: Claim,
    available: Mapping[str, int],
    residents: Sequence[Resident],
    rules: SwapRules,
    now_s: float,
) -> Decision:
    """What to do for `claim` while `available` bytes are there. `residents` are all other models."""
    missing = _missing(claim.needed, available)
    if not missing:
        return Grant()
    leaving = [resident for resident in residents if resident.hold is Hold.LEAVING]
    missing = _less(missing, leaving)
    if not missing:
        return Wait(is_leaving=True)
    settled = [r for r in residents if r.is_settled and not _is_wanted_before(r, claim, rules)]
    free_to_go = [resident for resident in settled if resident.protected_until_s <= now_s]
    idle = [resident for resident in free_to_go if not resident.num_leases]
    victims = choose_victims(idle, missing, policy=rules.policy, now_s=now_s)
    if victims is None and now_s >= claim.since_s + rules.max_swap_wait_s:
        missing = _less(missing, (r for r in residents if r.hold is Hold.DRAINING))
        if missing:
            victims = choose_victims(free_to_go, missing, policy=rules.policy, now_s=now_s)
    if victims is not None:
        return Evict(choose_sleepers(victims, residents, _spare(claim.needed, available, leaving)))
    return _refusal(claim.needed, available, residents) or Wait(
        is_leaving=False, until_s=_next_chance_s(claim, settled, rules, now_s)
    )


def _is_wanted_before(resident: Resident, claim: Claim, rules: SwapRules) -> bool:
    """Whether somebody who waits for a resident is to be served before the claim.

    In memory it serves them all before it makes way; in order of arrival, only who came earlier.
    """
    waiting_s = resident.oldest_wait_s
    return waiting_s is not None and (rules.collate or waiting_s <= claim.since_s)


def _refusal(
    needed: Mapping[str, int], available: Mapping[str, int], residents: Sequence[Resident]
) -> Refuse | None:
    lacking = _less(_missing(needed, available), (r for r in residents if not r.pinned))
    for device, num_bytes in lacking.items():
        return Refuse(device, needed[device], max(0, needed[device] - num_bytes))
    return None


def _next_chance_s(claim: Claim, settled: Iterable[Resident], rules: SwapRules, now_s: float) -> float:
    """When the passing of time alone may change the decision."""
    times = [claim.since_s + rules.max_swap_wait_s, *(resident.protected_until_s for resident in settled)]
    return min((time_s for time_s in times if time_s > now_s), default=math.inf)


def _missing(needed: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    return {
        device: num_bytes - available.get(device, 0)
        for device, num_bytes in needed.items()
        if num_bytes > available.get(device, 0)
    }


def _less(missing: Mapping[str, int], residents: Iterable[Resident]) -> dict[str, int]:
    """What is still missing when these have given their bytes back."""
    left = dict(missing)
    for resident in residents:
        for device in missing:
            left[device] -= resident.bytes_by_device.get(device, 0)
    return {device: num_bytes for device, num_bytes in left.items() if num_bytes > 0}


def _spare(
    needed: Mapping[str, int], available: Mapping[str, int], leaving: Iterable[Resident]
) -> dict[str, int]:
    """Per device, what would be left over beside the need; negative where it is missing."""
    spare = {device: available.get(device, 0) for device in {*available, *needed}}
    for resident in leaving:
        for device, num_bytes in resident.bytes_by_device.items():
            spare[device] = spare.get(device, 0) + num_bytes
    return {device: num_bytes - needed.get(device, 0) for device, num_bytes in spare.items()}


def refused(model: str, refusal: Refuse) -> InsufficientMemory:
    """The error for a model that cannot get its bytes, with both numbers."""
    return InsufficientMemory(
        f"{model!r} needs {format_bytes(refusal.needed_bytes)} on {refusal.device}, but only "
        f"{format_bytes(refusal.obtainable_bytes)} can be made free there (pinned models and other programs "
        "keep the rest)"
    )
