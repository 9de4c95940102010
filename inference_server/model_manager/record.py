"""What the manager knows of one configured model, and of one stay of a model in memory. Plain state.

Owner: the manager (event loop). Only `table.py` changes a record's state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from inference_server.config.catalog import ModelSpec
from inference_server.errors import HelixFlowError
from inference_server.model_manager.cooldown import Failure
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.states import ModelState
from inference_server.worker.handle import Worker
from inference_server.worker.protocol import Progress

ProgressListener = Callable[[Progress], None]
logger = logging.getLogger(__name__)


class Residency:
    """One stay in memory: a worker, its plan and its leases. A reload is a new one, a wake is not.

    `quiet` is set while no lease is open, and for good once the worker is gone or leases no longer matter.
    `keep_alive_s` is what the last user asked for, instead of the model's own; negative: for ever.
    `may_sleep` is False once somebody wants the memory back for good.
    """

    def __init__(self, worker: Worker, plan: ModelPlan, now_s: float) -> None:
        self.worker = worker
        self.plan = plan
        self.ready_since_s = now_s
        self.last_used_s = now_s
        self.num_leases = 0
        self.keep_alive_s: float | None = None
        self.may_sleep = self.can_sleep
        self.expiry: asyncio.TimerHandle | None = None
        self.quiet = asyncio.Event()
        self.quiet.set()

    @property
    def can_sleep(self) -> bool:
        """Whether its worker can, and the plan knows what it then holds."""
        return self.worker.ready.can_sleep and bool(self.plan.sleeping_bytes_by_device)

    @property
    def sleeping_bytes(self) -> Mapping[str, int] | None:
        """Bytes per device that it keeps if it is told to sleep now; None if it cannot or may not."""
        return self.plan.sleeping_bytes_by_device if self.may_sleep else None

    def open_lease(self, now_s: float) -> None:
        """One more user."""
        self.num_leases += 1
        self.last_used_s = now_s
        self.quiet.clear()

    def close_lease(self, now_s: float, keep_alive_s: float | None) -> None:
        """One user less; it says how long the model is to stay, if it is the last one."""
        self.num_leases -= 1
        self.last_used_s = now_s
        self.keep_alive_s = keep_alive_s
        if self.num_leases == 0:
            self.quiet.set()

    def abandon(self) -> None:
        """Leases keep nobody waiting any more; no new one may be opened."""
        self.quiet.set()


@dataclass(eq=False, slots=True)
class ModelRecord:
    """One configured model. While somebody waits for it, it is not evicted under them.

    `is_retired`: it has left the configuration and goes when its last lease ends. `cancel_reason` says why
    the last load was cancelled, for those who wait for it; empty: they try again.
    """

    spec: ModelSpec
    state: ModelState = ModelState.UNLOADED
    state_since_s: float = 0.0
    folder: str | None = None  # prepared earlier in this process; one resolved revision for all its loads
    plan: ModelPlan | None = None
    residency: Residency | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    is_retired: bool = False
    cancel_reason: str = ""
    num_deaths: int = 0
    load: asyncio.Task[HelixFlowError | None] | None = None
    load_since_s: float = 0.0
    departure: asyncio.Task[None] | None = None
    listeners: list[ProgressListener] = field(default_factory=list)
    _arrivals: dict[object, float] = field(default_factory=dict)

    @property
    def num_waiting(self) -> int:
        """Acquirers that wait for the model."""
        return len(self._arrivals)

    @property
    def oldest_wait_s(self) -> float | None:
        """When the first of those who wait came; None: nobody waits."""
        return next(iter(self._arrivals.values()), None)

    @contextmanager
    def waiting(self, arrived_s: float) -> Iterator[None]:
        """Count as somebody who waits for the model."""
        ticket = object()
        self._arrivals[ticket] = arrived_s
        try:
            yield
        finally:
            del self._arrivals[ticket]

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
