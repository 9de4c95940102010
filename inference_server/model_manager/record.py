"""What the manager knows of one configured model, and of one stay of a model in memory. Plain state.

Owner: the manager (event loop). Only `lifecycle.py` changes a record's state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from inference_server.config.catalog import ModelSpec
from inference_server.errors import HelixFlowError
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.states import ModelState
from inference_server.worker.handle import Worker
from inference_server.worker.protocol import Progress

ProgressListener = Callable[[Progress], None]
logger = logging.getLogger(__name__)


class Residency:
    """One stay in memory: a worker, its plan and its leases. A reload is a new one.

    `quiet` is set while no lease is open, and for good once the worker is gone or leases no longer matter.
    """

    def __init__(self, worker: Worker, plan: ModelPlan, now_s: float) -> None:
        self.worker = worker
        self.plan = plan
        self.last_used_s = now_s
        self.num_leases = 0
        self.quiet = asyncio.Event()
        self.quiet.set()

    def open_lease(self, now_s: float) -> None:
        """One more user."""
        self.num_leases += 1
        self.last_used_s = now_s
        self.quiet.clear()

    def close_lease(self, now_s: float) -> None:
        """One user less."""
        self.num_leases -= 1
        self.last_used_s = now_s
        if self.num_leases == 0:
            self.quiet.set()

    def abandon(self) -> None:
        """Leases keep nobody waiting any more; no new one may be opened."""
        self.quiet.set()


@dataclass(frozen=True, slots=True)
class Failure:
    """How the last load ended. A cooldown, when there is one, is counted from here."""

    error: HelixFlowError
    at_s: float
    num_in_a_row: int


@dataclass(eq=False, slots=True)
class ModelRecord:
    """One configured model. `num_waiting` acquirers wait for it; it is never evicted under them."""

    spec: ModelSpec
    state: ModelState = ModelState.UNLOADED
    state_since_s: float = 0.0
    folder: str | None = None  # prepared earlier in this process; one resolved revision for all its loads
    plan: ModelPlan | None = None
    residency: Residency | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    num_waiting: int = 0
    load: asyncio.Task[HelixFlowError | None] | None = None
    departure: asyncio.Task[None] | None = None
    listeners: list[ProgressListener] = field(default_factory=list)

    def report(self, progress: Progress | None) -> None:
        """Remember how far a load has come and tell those who wait."""
        self.progress = progress
        if progress is not None:
            for listener in tuple(self.listeners):
                self._tell(listener, progress)

    @contextmanager
    def listening(self, listener: ProgressListener | None) -> Iterator[None]:
        """Tell `listener` how far a load has come, now and at each change."""
        if listener is None:
            yield
            return
        self.listeners.append(listener)
        try:
            if self.progress is not None:
                self._tell(listener, self.progress)
            yield
        finally:
            self.listeners.remove(listener)

    def _tell(self, listener: ProgressListener, progress: Progress) -> None:
        try:
            listener(progress)
        except Exception:  # its own fault, and no reason to fail a load that others wait for
            logger.exception("a progress listener of %s failed", self.spec.name)
