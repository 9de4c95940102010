"""Which models leave when another one needs their bytes. Pure: residents and need in, names out."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Hold(enum.Enum):
    """Why a resident's bytes are where they are, and whether they can come back."""

    LOADING = "loading"  # reserved, worker not ready yet; evictable one day
    READY = "ready"
    LEAVING = "leaving"  # no lease left, worker being stopped: the bytes are on their way back


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that holds a reservation. `num_leases` counts users, and those about to become one."""

    name: str
    bytes_by_device: Mapping[str, int]
    last_used_s: float
    num_leases: int = 0
    pinned: bool = False
    hold: Hold = Hold.READY

    @property
    def evictable(self) -> bool:
        """Ready, not pinned, and nobody uses it."""
        return self.hold is Hold.READY and self.num_leases == 0 and not self.pinned

    def bytes_on(self, devices: Mapping[str, int]) -> int:
        """Bytes it holds on any of `devices`."""
        return sum(self.bytes_by_device.get(device, 0) for device in devices)


def choose_victims(candidates: Sequence[Resident], needed: Mapping[str, int]) -> tuple[str, ...] | None:
    """The least recently used evictable models whose bytes cover `needed` (bytes per device).

    Candidates are taken in order of last use until the need is covered; then those that turn out not to be
    necessary are spared, the most recently used first. None if all of them together do not suffice, so that
    nothing is ever evicted in vain.
    """
    victims: list[Resident] = []
    for resident in sorted(candidates, key=lambda resident: resident.last_used_s):
        if _covers(victims, needed):
            break
        if resident.evictable and resident.bytes_on(needed):
            victims.append(resident)
    if not _covers(victims, needed):
        return None
    for resident in reversed(victims.copy()):
        spared = [victim for victim in victims if victim is not resident]
        if _covers(spared, needed):
            victims = spared
    return tuple(victim.name for victim in victims)


def _covers(victims: Sequence[Resident], needed: Mapping[str, int]) -> bool:
    return all(
        sum(victim.bytes_by_device.get(device, 0) for victim in victims) >= num_bytes
        for device, num_bytes in needed.items()
    )
