"""What the manager tells whoever measures it. Telemetry implements this; the manager never imports it."""

from __future__ import annotations

from typing import Protocol

from inference_server.model_manager.states import ModelState
from inference_server.types import EngineStats


class ManagerObserver(Protocol):
    """Called on the event loop; must be quick and must not raise."""

    def on_state(self, model: str, state: ModelState) -> None:
        """`model` is now in `state`."""

    def on_load(self, model: str, seconds: float, ok: bool) -> None:
        """A load ended, `seconds` after it was asked for (fetch and wait for memory included)."""

    def on_eviction(self, model: str, reason: str) -> None:
        """`model` is being evicted. `reason`: "memory" (another model needs its bytes)."""

    def on_worker_died(self, model: str) -> None:
        """The worker of a resident model ended without being told to."""

    def on_step(self, model: str, stats: EngineStats) -> None:
        """A worker has finished one step."""


class NullObserver:
    """Measures nothing."""

    def on_state(self, model: str, state: ModelState) -> None:
        """See `ManagerObserver`."""

    def on_load(self, model: str, seconds: float, ok: bool) -> None:
        """See `ManagerObserver`."""

    def on_eviction(self, model: str, reason: str) -> None:
        """See `ManagerObserver`."""

    def on_worker_died(self, model: str) -> None:
        """See `ManagerObserver`."""

    def on_step(self, model: str, stats: EngineStats) -> None:
        """See `ManagerObserver`."""
