"""What the manager tells whoever measures it. Telemetry implements this; the manager never imports it."""

from __future__ import annotations

from typing import Literal, Protocol

from inference_server.model_manager.states import ModelState
from inference_server.types import EngineStats

LoadSource = Literal["disk", "ram", "hub"]
EvictionReason = Literal["memory", "idle", "request", "removed"]


class ManagerObserver(Protocol):
    """Called on the event loop; must be quick and must not raise."""

    def on_state(self, model: str, state: ModelState) -> None:
        """`model` is now in `state`."""

    def on_load(self, model: str, seconds: float, ok: bool, source: LoadSource) -> None:
        """A load ended, `seconds` after it was asked for (fetch and wait for memory included).

        `source`: "hub" if it was fetched for it, "ram" if it only had to wake, else "disk".
        """

    def on_eviction(self, model: str, reason: EvictionReason) -> None:
        """`model` is told to leave memory or to sleep.

        `reason`: "memory" (another model needs its bytes), "idle" (its keep_alive is over), "request"
        (somebody said so), "removed" (it is configured no more, or in another way).
        """

    def on_sleep(self, model: str) -> None:
        """`model` has given its weights' memory back and sleeps."""

    def on_wake(self, model: str, seconds: float) -> None:
        """A sleeping `model` is ready again, `seconds` after its bytes were granted."""

    def on_swap_wait(self, model: str, seconds: float) -> None:
        """A request got its lease on `model` after `seconds`, because the model was not ready for it."""

    def on_estimate(self, model: str, error_ratio: float) -> None:
        """`model` is loaded; its weights and KV cache take (1 + `error_ratio`) × what was planned."""

    def on_worker_died(self, model: str) -> None:
        """The worker of a resident model ended without being told to."""

    def on_step(self, model: str, stats: EngineStats) -> None:
        """A worker has finished one step."""


class NullObserver:
    """Measures nothing."""

    def on_state(self, model: str, state: ModelState) -> None:
        """See `ManagerObserver`."""

    def on_load(self, model: str, seconds: float, ok: bool, source: LoadSource) -> None:
        """See `ManagerObserver`."""

    def on_eviction(self, model: str, reason: EvictionReason) -> None:
        """See `ManagerObserver`."""

    def on_sleep(self, model: str) -> None:
        """See `ManagerObserver`."""

    def on_wake(self, model: str, seconds: float) -> None:
        """See `ManagerObserver`."""

    def on_swap_wait(self, model: str, seconds: float) -> None:
        """See `ManagerObserver`."""

    def on_estimate(self, model: str, error_ratio: float) -> None:
        """See `ManagerObserver`."""

    def on_worker_died(self, model: str) -> None:
        """See `ManagerObserver`."""

    def on_step(self, model: str, stats: EngineStats) -> None:
        """See `ManagerObserver`."""
