"""When an idle model's time is over. `expires_at_s` is pure; the timers belong to `KeepAlive`.

Counted from the end of the last lease, which is the last byte of the last request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inference_server.config.catalog import ModelSpec
from inference_server.model_manager.record import ModelRecord, Residency
from inference_server.model_manager.states import ModelState

MIN_DELAY_S = 0.001
STAYING = (ModelState.READY, ModelState.SLEEPING)


def expires_at_s(spec: ModelSpec, residency: Residency) -> float | None:
    """When the model is to be unloaded if nobody uses it until then; None: never, or somebody uses it now.

    Pinned and preloaded models never expire.
    """
    keep_alive_s = spec.keep_alive_s if residency.keep_alive_s is None else residency.keep_alive_s
    if spec.pinned or spec.preload or residency.num_leases or keep_alive_s is None or keep_alive_s < 0:
        return None
    return residency.last_used_s + keep_alive_s


class KeepAlive:
    """One timer per idle model. Owner: the event loop. `expire` is called when a model's time is over."""

    def __init__(self, clock: Callable[[], float], expire: Callable[[ModelRecord], None]) -> None:
        self._clock = clock
        self._expire = expire

    def watch(self, record: ModelRecord) -> None:
        """Look at the model again: its use, state or entry has changed."""
        residency = record.residency
        if residency is None or record.state not in STAYING:
            return
        if residency.expiry is not None:
            residency.expiry.cancel()
            residency.expiry = None
        expires_s = expires_at_s(record.spec, residency)
        if expires_s is None or record.num_waiting:
            return
        delay_s = expires_s - self._clock()
        if delay_s <= 0:
            self._expire(record)
        else:
            residency.expiry = asyncio.get_running_loop().call_later(
                max(MIN_DELAY_S, delay_s), self.watch, record
            )
