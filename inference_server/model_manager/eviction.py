"""Which models leave when another one needs their bytes. Pure: residents, need and time in, names out.

Whose need it is and when it may be served at all is `admission.py`; who sleeps instead is `warm_tier.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_RELOAD_S = 0.1  # a model that loads in no time is not infinitely cheap to evict


class Hold(enum.Enum):
    """Why a resident's bytes are where they are, and whether they can come back."""

    LOADING = "loading"  # reserved, worker not ready yet; evictable one day
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"  # takes no new lease; leaves when the open ones end
    LEAVING = "leaving"  # no lease left: the bytes are on their way back


class EvictionPolicy(enum.StrEnum):
    """In which order idle models leave."""

    COST = "cost"  # highest idle seconds × bytes freed ÷ seconds to reload first
    LRU = "lru"  # least recently used first


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that holds a reservation.

    `bytes_by_device` is what comes back when it goes. `oldest_wait_s` is when the first of those who wait
    for it came; None: nobody waits. Until `protected_until_s` it has a right to stay. `sleeping_bytes` is
    what it would keep asleep; None: it cannot sleep.
    """

    name: str
    bytes_by_device: Mapping[str, int]
    last_used_s: float
    num_leases: int = 0
    oldest_wait_s: float | None = None
    pinned: bool = False
    hold: Hold = Hold.READY
    protected_until_s: float = 0.0
    reload_s: float = 1.0
    sleeping_bytes: Mapping[str, int] | None = None

    @property
    def is_settled(self) -> bool:
        """Ready or asleep, and not pinned: it leaves if it is told to."""
        return self.hold in (Hold.READY, Hold.SLEEPING) and not self.pinned

    def bytes_on(self, devices: Mapping[str, int]) -> int:
        """Bytes it holds on any of `devices`."""
        return sum(self.bytes_by_device.get(device, 0) for device in devices)


def choose_victims(
    candidates: Sequence[Resident],
    needed: Mapping[str, int],
    *,
    policy: EvictionPolicy = EvictionPolicy.COST,
    now_s: float = 0.0,
) -> tuple[Resident, ...] | None:
    """Models among `candidates` whose bytes cover `needed` (bytes per device), the first to go first.

    Those asleep go before those awake, idle ones before those in use. They are taken until the need is
    covered; then those that turn out not to be necessary are spared, the last taken first. None if all of
    them together do not suffice, so that nothing is ever evicted in vain.
    """
    victims: list[Resident] = []
    for resident in sorted(candidates, key=lambda resident: _rank(resident, needed, policy, now_s)):
        if covers(victims, needed):
            break
        if resident.bytes_on(needed):
            victims.append(resident)
    if not covers(victims, needed):
        return None
    for resident in reversed(victims.copy()):
        spared = [victim for victim in victims if victim is not resident]
        if covers(spared, needed):
            victims = spared
    return tuple(victims)


def covers(residents: Sequence[Resident], needed: Mapping[str, int]) -> bool:
    """Whether their bytes together are at least `needed` on every device."""
    return all(
        sum(resident.bytes_by_device.get(device, 0) for resident in residents) >= num_bytes
        for device, num_bytes in needed.items()
    )


def _rank(
    resident: Resident, needed: Mapping[str, int], policy: EvictionPolicy, now_s: float
) -> tuple[bool, int, float, float]:
    """Sorts first what should leave first. Among models in use: fewest leases, then longest there."""
    is_awake = resident.hold is not Hold.SLEEPING
    if resident.num_leases:
        return is_awake, resident.num_leases, resident.protected_until_s, resident.last_used_s
    if policy is EvictionPolicy.LRU or not is_awake:
        return is_awake, 0, resident.last_used_s, 0.0
    idle_s = max(0.0, now_s - resident.last_used_s)
    gain = idle_s * resident.bytes_on(needed) / max(MIN_RELOAD_S, resident.reload_s)
    return is_awake, 0, -gain, resident.last_used_s
