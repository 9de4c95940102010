"""Which of the models that must leave can sleep instead, and which sleepers make room for them. Pure.

The warm tier has no budget of its own: sleepers share the host's with the models on the CPU, and are the
first to go when its bytes are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference_server.model_manager.eviction import Hold, Resident


@dataclass(frozen=True, slots=True)
class Victim:
    """A model that is to leave. `sleeps`: its process stays and gives back all but its sleeping bytes."""

    name: str
    sleeps: bool = False


def choose_sleepers(
    victims: Sequence[Resident], residents: Sequence[Resident], spare: Mapping[str, int]
) -> tuple[Victim, ...]:
    """How each of `victims` leaves; more of those asleep are added if that lets one of them sleep.

    `spare` is per device what is there beyond the need before anybody leaves; negative where bytes are
    missing. It must not be negative afterwards. The most recently used victim is the first to be allowed to
    sleep.
    """
    leaving = list(victims)
    asleep: list[Resident] = []
    for victim in sorted(victims, key=lambda resident: -resident.last_used_s):
        if victim.hold is not Hold.READY or victim.sleeping_bytes is None:
            continue
        more = _room_for([*asleep, victim], leaving, residents, spare)
        if more is not None:
            asleep.append(victim)
            leaving.extend(more)
    return tuple(Victim(resident.name, resident in asleep) for resident in leaving)


def _room_for(
    asleep: Sequence[Resident],
    leaving: Sequence[Resident],
    residents: Sequence[Resident],
    spare: Mapping[str, int],
) -> list[Resident] | None:
    """The sleepers that must go so that `asleep` fit, least recently used first; None if all are too few."""
    others = (r for r in residents if r.hold is Hold.SLEEPING and r.is_settled and r not in leaving)
    idle = sorted((r for r in others if r.oldest_wait_s is None), key=lambda resident: resident.last_used_s)
    more: list[Resident] = []
    while not _fits(asleep, [*leaving, *more], spare):
        if not idle:
            return None
        more.append(idle.pop(0))
    return more


def _fits(asleep: Sequence[Resident], leaving: Sequence[Resident], spare: Mapping[str, int]) -> bool:
    devices = {*spare, *(d for r in asleep for d in (r.sleeping_bytes or {}))}
    return all(
        spare.get(device, 0)
        + sum(resident.bytes_by_device.get(device, 0) for resident in leaving)
        - sum((resident.sleeping_bytes or {}).get(device, 0) for resident in asleep)
        >= 0
        for device in devices
    )
