"""The model manager: hands out leases on models, and brings models in and out of memory for it.

Owner: the event loop; nothing here locks or blocks. It decides who waits and for how long; what happens to a
model meanwhile is `lifecycle.py`, who gets memory is `admission.py`. It knows neither HTTP nor tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inference_server import errors
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.settings import Settings
from inference_server.model_manager.budget import MemoryBudget, budget_bytes
from inference_server.model_manager.devices import DeviceProbe, cpu_flags, discover_devices, resident_bytes
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.lifecycle import Lifecycle, Planner, too_late
from inference_server.model_manager.observer import ManagerObserver, NullObserver
from inference_server.model_manager.plan import ModelPlan, plan_model
from inference_server.model_manager.preload import Preloader
from inference_server.model_manager.record import ModelRecord, ProgressListener
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import DeviceUsage, ModelStatus, status_of
from inference_server.worker.launcher import WorkerLauncher

MAX_LOADS_PER_ACQUIRE = 3  # a worker that ends right after it was ready is not restarted for ever


class ModelManager:
    """All configured models under one memory budget. Create it on the event loop's thread.

    `devices` says what memory there is, `process_bytes` how much of it a process (by pid) has touched,
    `planner` what a model takes, `clock` the time (seconds, monotonic): all replaceable in tests.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        launcher: WorkerLauncher,
        *,
        observer: ManagerObserver | None = None,
        devices: DeviceProbe = discover_devices,
        planner: Planner | None = None,
        clock: Callable[[], float] = time.monotonic,
        process_bytes: Callable[[int], int] = resident_bytes,
    ) -> None:
        self.budget = MemoryBudget(budget_bytes(catalog.memory, devices()))
        self._catalog = catalog
        self._clock = clock
        self._lifecycle = Lifecycle(
            catalog.models.values(),
            settings,
            launcher,
            budget=self.budget,
            devices=devices,
            planner=planner or planner_for(settings),
            clock=clock,
            observer=observer or NullObserver(),
            process_bytes=process_bytes,
        )
        names = [name for name, spec in catalog.models.items() if spec.preload]
        self._preloader = Preloader(names, self.load)
        self._num_users = 0  # acquirers and leases
        self._unused = asyncio.Event()
        self._unused.set()
        self._is_draining = False
        self._is_stopping = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Begin to preload; returns at once."""
        self._preloader.start()

    @property
    def preload_done(self) -> asyncio.Event:
        """Set when preloading is over, however it went."""
        return self._preloader.done

    @property
    def preload_error(self) -> errors.HelixFlowError | None:
        """Why preloading failed, after its retries."""
        return self._preloader.error

    @property
    def is_ready(self) -> bool:
        """Whether every preloaded model has been in memory once, and the server is not leaving."""
        return self.preload_done.is_set() and self.preload_error is None and not self._is_draining

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new acquires and wait for those there are; whether all ended within `timeout_s`."""
        self._is_draining = True
        await self._preloader.stop()
        if not self._unused.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._unused.wait(), timeout_s)
        return self._unused.is_set()

    async def stop(self) -> None:
        """End every load and every worker, whoever uses them; returns when all their processes are gone."""
        self._is_draining = self._is_stopping = True
        await self._preloader.stop()
        records = self._lifecycle.records.values()
        loads = {load for record in records if (load := self._lifecycle.cancel_load(record))}
        if loads:
            await asyncio.wait(loads)
        departures = {task for record in records if (task := self._expel(record))}
        if departures:
            await asyncio.wait(departures)

    # ------------------------------------------------------------ use

    @contextlib.asynccontextmanager
    async def acquire(
        self, name: str, *, deadline_s: float | None = None, on_progress: ProgressListener | None = None
    ) -> AsyncIterator[Lease]:
        """A lease on a model by name or alias, loading the model first if need be.

        `deadline_s` is a time on the manager's clock, not a duration; it ends the wait for the model, not the
        lease. `on_progress` hears how far the load has come. Leaving early never aborts a load.

        Raises:
            UnknownModel: no such model.
            ShuttingDown: the server is draining.
            ModelLoadFailed: the load failed.
            InsufficientMemory: it can never fit, or memory was in use until the deadline.
            DeadlineExceeded: the load took longer.
        """
        record = self._record(name)
        with self._use():
            lease = self._lifecycle.try_lease(record)
            if lease is None:
                lease = await self._wait_for_lease(record, deadline_s, on_progress)
            try:
                yield lease
            finally:
                lease.release()

    async def load(self, name: str) -> None:
        """Bring a model into memory. Raises like `acquire`."""
        async with self.acquire(name):
            pass

    async def unload(self, name: str) -> None:
        """Take a model out of memory: abort its load, or wait for its leases and stop its worker.

        Raises:
            UnknownModel: no such model.
        """
        record = self._record(name)
        if (load := self._lifecycle.cancel_load(record)) is not None:
            await asyncio.wait({load})
        if (departure := self._lifecycle.begin_departure(record)) is not None:
            await asyncio.wait({departure})
        self._lifecycle.clear_failure(record)

    def snapshot(self) -> list[ModelStatus]:
        """Every configured model, in the catalog's order."""
        return [self._status(record) for record in self._lifecycle.records.values()]

    def status(self, name: str) -> ModelStatus:
        """One model by name or alias.

        Raises:
            UnknownModel: no such model.
        """
        return self._status(self._record(name))

    def device_usage(self) -> list[DeviceUsage]:
        """The budget and what is reserved of it, per device."""
        return [
            DeviceUsage(device, capacity, self.budget.reserved_bytes(device))
            for device, capacity in self.budget.capacity_bytes.items()
        ]

    # ------------------------------------------------------------ waiting

    async def _wait_for_lease(
        self, record: ModelRecord, deadline_s: float | None, on_progress: ProgressListener | None
    ) -> Lease:
        num_loads = 0
        with self._waiting(record, on_progress):
            while (lease := self._lifecycle.try_lease(record)) is None:
                self._refuse_if_stopping()
                if record.state is ModelState.READY:  # its worker is gone; that is about to be noticed
                    await asyncio.sleep(0)
                elif record.departure is not None:
                    await self._join(record, record.departure, deadline_s)
                elif num_loads == MAX_LOADS_PER_ACQUIRE:
                    raise errors.ModelLoadFailed(f"{record.spec.name!r} ends whenever it has been loaded")
                else:
                    num_loads += 1
                    await self._join_load(record, deadline_s)
            return lease

    async def _join_load(self, record: ModelRecord, deadline_s: float | None) -> None:
        """Wait for the load under way, or a new one. Returns also if it ended without the model."""
        if deadline_s is not None and deadline_s <= self._clock():
            raise too_late(record, self._lifecycle.line)
        load = self._lifecycle.ensure_loading(record)
        await self._join(record, load, deadline_s)
        self._refuse_if_stopping()
        if load.cancelled():
            raise errors.ModelLoadFailed(
                f"{record.spec.name!r} was unloaded by request while it was loading", retry_after_s=1.0
            )
        if (error := load.result()) is not None:
            raise _copy(error) from error

    async def _join(self, record: ModelRecord, task: asyncio.Task[Any], deadline_s: float | None) -> None:
        """Wait for somebody else's task without ever cancelling it."""
        timeout_s = None if deadline_s is None else max(0.0, deadline_s - self._clock())
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise too_late(record, self._lifecycle.line)

    @contextlib.contextmanager
    def _waiting(self, record: ModelRecord, on_progress: ProgressListener | None) -> Iterator[None]:
        """Count as somebody who wants the model: it is not evicted meanwhile, nor its load withdrawn."""
        record.num_waiting += 1
        with record.listening(on_progress):
            try:
                yield
            finally:
                record.num_waiting -= 1
                self._lifecycle.line.serve()

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        if self._is_draining:
            raise errors.ShuttingDown("the server is shutting down")
        self._num_users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._unused.set()

    def _refuse_if_stopping(self) -> None:
        if self._is_stopping:
            raise errors.ShuttingDown("the server is shutting down")

    # ------------------------------------------------------------ records

    def _record(self, name: str) -> ModelRecord:
        return self._lifecycle.records[self._catalog.resolve(name).name]

    def _status(self, record: ModelRecord) -> ModelStatus:
        return status_of(record, self.budget.reservation(record.spec.name))

    def _expel(self, record: ModelRecord) -> asyncio.Task[None] | None:
        """Let a model depart without waiting for its leases."""
        departure = self._lifecycle.begin_departure(record)
        if record.residency is not None:
            record.residency.abandon()
        return departure


def planner_for(settings: Settings) -> Planner:
    """Plans from the model's files, in a thread: a large checkpoint has megabytes of headers."""
    flags = cpu_flags()

    async def plan(spec: ModelSpec, folder: Path, capacity_bytes: Mapping[str, int]) -> ModelPlan:
        return await asyncio.to_thread(plan_model, spec, folder, settings, capacity_bytes, flags)

    return plan


def _copy(error: errors.HelixFlowError) -> errors.HelixFlowError:
    """Each waiter raises its own: one exception object must not travel through several tasks."""
    return type(error)(error.message, param=error.param, retry_after_s=error.retry_after_s)
