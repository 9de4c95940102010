"""The model manager: hands out leases on models, and brings models in and out of memory for it.

Owner: the event loop; nothing here locks or blocks. Who has no lease yet waits in `waiting.py`; what happens
to a model meanwhile is `lifecycle.py`, who gets memory is `admission.py`. It knows neither HTTP nor tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from inference_server import errors
from inference_server.config.catalog import Catalog
from inference_server.config.settings import Settings
from inference_server.model_manager.arrival import Planner
from inference_server.model_manager.budget import MemoryBudget, budget_bytes
from inference_server.model_manager.devices import DeviceProbe, discover_devices, resident_bytes
from inference_server.model_manager.files import Files
from inference_server.model_manager.forecast import Forecast
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.lifecycle import Lifecycle
from inference_server.model_manager.load_times import LoadTimes
from inference_server.model_manager.observer import ManagerObserver, NullObserver
from inference_server.model_manager.planning import planner_for
from inference_server.model_manager.preload import Preloader
from inference_server.model_manager.record import ModelRecord, ProgressListener
from inference_server.model_manager.reload import ReloadReport, affects_loading, compare
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import DeviceUsage, ModelStatus
from inference_server.model_manager.waiting import Wait, Waiting
from inference_server.worker.launcher import WorkerLauncher

LAST_GRACE_S = 0.25  # for a worker to end by itself when the server does: all its ends have a second


class ModelManager:
    """All configured models under one memory budget. Create it on the event loop's thread.

    `devices` says what memory there is, `process_bytes` how much of it a process (by pid) has touched,
    `planner` what a model takes, `load_times` how long loads took before, `clock` the time (seconds,
    monotonic): all replaceable in tests.
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
        load_times: LoadTimes | None = None,
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
            load_times=load_times or LoadTimes(),
        )
        self._waiting = Waiting(self._lifecycle, clock, observer or NullObserver())
        names = [name for name, spec in catalog.models.items() if spec.preload]
        self._preloader = self._preloader_of(names)
        self._later_preloaders: list[Preloader] = []  # of reloads
        self._files = Files(launcher, settings, clock)
        self._num_users = 0  # acquirers and leases
        self._unused = asyncio.Event()
        self._unused.set()
        self._is_draining = False

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
        await self.stop_preloading()
        if not self._unused.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._unused.wait(), timeout_s)
        return self._unused.is_set()

    async def stop(self) -> None:
        """End every load and every worker, whoever uses them; returns when all their processes are gone."""
        self._is_draining = self._waiting.is_over = True
        await self.stop_preloading()
        await self._files.stop()
        self._lifecycle.table.ring()
        records = list(self._lifecycle.table.records.values())
        for record in records:
            self._lifecycle.arrivals.cancel(record)
        await asyncio.gather(*map(self._end, records))

    async def stop_preloading(self) -> None:
        """Begin no further preload; a load that somebody waits for goes on."""
        for preloader in (self._preloader, *self._later_preloaders):
            await preloader.stop()

    # ------------------------------------------------------------ use

    @contextlib.asynccontextmanager
    async def acquire(
        self,
        name: str,
        *,
        deadline_s: float | None = None,
        on_progress: ProgressListener | None = None,
        keep_alive_s: float | None = None,
        retries: bool = False,
    ) -> AsyncIterator[Lease]:
        """A lease on a model by name or alias, loading or waking the model first if need be.

        `deadline_s` is a time on the manager's clock, not a duration; it ends the wait for the model, not the
        lease. `on_progress` hears how far the load has come. Leaving early never aborts a load.
        `keep_alive_s` replaces the model's own for the idle time after this lease; negative: for ever.
        `retries` tries at once what a failed load has put off.

        Raises:
            UnknownModel: no such model.
            ShuttingDown: the server is draining.
            ModelLoadFailed: the load failed, now or a short while ago.
            InsufficientMemory: it can never fit, or memory was in use until the deadline.
            ModelLoading: the load took longer than until the deadline.
        """
        record = self._record(name)
        with self._use():
            lease = self._lifecycle.try_lease(record, self._clock(), keep_alive_s)
            if lease is None:
                wait = Wait(record, self._clock(), deadline_s, keep_alive_s, retries, record.num_deaths)
                lease = await self._waiting.wait_for_lease(wait, on_progress)
            try:
                yield lease
            finally:
                lease.release()

    async def load(self, name: str) -> None:
        """Bring a model into memory, at once also after a failed load. Raises like `acquire`."""
        async with self.acquire(name, retries=True):
            pass

    async def unload(self, name: str) -> None:
        """Take a model out of memory: abort its load, or wait for its leases and stop its worker.

        Raises:
            UnknownModel: no such model.
        """
        record = self._record(name)
        load = self._lifecycle.arrivals.cancel(record, "was unloaded by request while it was loading")
        if load is not None:
            await asyncio.wait({load})
        if (departure := self._lifecycle.depart(record, "request")) is not None:
            await asyncio.wait({departure})
        self._lifecycle.clear_failure(record)

    async def sleep(self, name: str) -> None:
        """Wait for a model's leases, then give its weights' memory back and keep its process. Idempotent.

        Raises:
            UnknownModel: no such model.
            SleepUnsupported: it is not in memory, or it cannot sleep.
        """
        record = self._record(name)
        if record.state is ModelState.SLEEPING:
            return
        await asyncio.wait({self._lifecycle.put_to_sleep(record)})
        if record.residency is None:
            raise errors.SleepUnsupported(f"{name!r} could not be put to sleep and was unloaded")

    async def wake(self, name: str) -> None:
        """Make a model ready for requests, whether it sleeps or is not in memory. Raises like `acquire`."""
        await self.load(name)

    async def folder(self, name: str) -> str:
        """The prepared folder of a model; its files are fetched if need be, but it is not loaded.

        Raises:
            UnknownModel: no such model.
            ShuttingDown: the server is draining.
            ModelLoadFailed: its files cannot be had, now or a short while ago.
        """
        record = self._record(name)
        with self._use():
            return await self._files.folder(record)

    # ------------------------------------------------------------ configuration

    def reload(self, catalog: Catalog) -> ReloadReport:
        """Serve these models from now on: new ones appear, removed ones drain, changed ones drain and come
        back under their new entries with the next request. All or nothing.

        Raises:
            ConfigError: the memory budget is another one.
        """
        report = compare(self._catalog, catalog)
        old, self._catalog = self._catalog, catalog
        records = self._lifecycle.table.records
        for name in report.removed:
            removed = records[name]
            self._lifecycle.retire(removed)
            self._lifecycle.table.announce(removed)
        for name in (*report.added, *report.changed):
            spec = catalog.models[name]
            if (record := records.get(name)) is None:
                records[name] = ModelRecord(spec, state_since_s=self._clock())
            else:  # an added one may still be draining from before
                reloads = name not in old.models or affects_loading(record.spec, spec)
                self._lifecycle.adopt(record, spec, reloads=reloads)
            self._lifecycle.table.announce(records[name])
        self._lifecycle.table.sort_like(catalog.models)
        self._preload([name for name in report.added if catalog.models[name].preload])
        return report

    def _preload(self, names: list[str]) -> None:
        """In the background; readiness does not wait for what a reload brings."""
        if names and not self._is_draining:
            self._later_preloaders = [p for p in self._later_preloaders if not p.done.is_set()]
            self._later_preloaders.append(self._preloader_of(names))
            self._later_preloaders[-1].start()

    def _preloader_of(self, names: list[str]) -> Preloader:
        return Preloader(names, self.load, self._is_preloaded)

    def _is_preloaded(self, name: str) -> bool:
        spec = self._catalog.models.get(name)
        return spec is not None and spec.preload

    # ------------------------------------------------------------ what others may know

    @property
    def catalog(self) -> Catalog:
        """The models that are served now."""
        return self._catalog

    def watch(self) -> AbstractContextManager[AsyncIterator[ModelStatus]]:
        """Entered, it gives snapshots without an end: one per state change or progress of any model."""
        return self._lifecycle.table.watchers.watch()

    def retry_after_s(self, name: str) -> float:
        """Seconds after which the model may be ready, from measured load times; between 1 s and 10 minutes.

        Raises:
            UnknownModel: no such model.
        """
        return self._lifecycle.retry_after_s(self._record(name))

    async def forecast(self, name: str) -> Forecast:
        """What a request for the model would meet now: its plan, and who would leave for it.

        Raises:
            UnknownModel: no such model.
            ConfigError, FetchFailed, ModelLoadFailed: its files contradict its entry, or are damaged.
        """
        return await self._lifecycle.forecast(self._record(name))

    def snapshot(self) -> list[ModelStatus]:
        """Every configured model, in the catalog's order; then those removed and not gone yet."""
        return [self._lifecycle.table.status(record) for record in self._lifecycle.table.records.values()]

    def status(self, name: str) -> ModelStatus:
        """One model by name or alias.

        Raises:
            UnknownModel: no such model.
        """
        return self._lifecycle.table.status(self._record(name))

    def device_usage(self) -> list[DeviceUsage]:
        """The budget and what is reserved of it, per device."""
        return [
            DeviceUsage(device, capacity, self.budget.reserved_bytes(device))
            for device, capacity in self.budget.capacity_bytes.items()
        ]

    # ------------------------------------------------------------ users

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

    # ------------------------------------------------------------ records

    def _record(self, name: str) -> ModelRecord:
        return self._lifecycle.table.records[self._catalog.resolve(name).name]

    async def _end(self, record: ModelRecord) -> None:
        """Return when no process of the model is left; its load has been cancelled."""
        if record.load is not None:
            await self._hasten(record, record.load)
        if (departure := self._expel(record)) is not None:
            await self._hasten(record, departure)

    async def _hasten(self, record: ModelRecord, task: asyncio.Task[Any]) -> None:
        """Wait for a task that ends the model's worker, and kill that if it takes long over it."""
        done, _ = await asyncio.wait({task}, timeout=LAST_GRACE_S)
        if not done:
            if record.residency is not None:
                record.residency.worker.kill()
            await asyncio.wait({task})

    def _expel(self, record: ModelRecord) -> asyncio.Task[None] | None:
        """Let a model depart without waiting for its leases."""
        departure = self._lifecycle.depart(record, "request")
        if record.residency is not None:
            record.residency.abandon()
        return departure
