"""Moves models through their states: puts together who brings them in, takes them out and leases them.

Owner of every record, of the budget and of the tasks that load and stop models; all on the event loop, no
locks. Who waits, and how long, is `manager.py`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from inference_server import errors
from inference_server.checkpoints.kept import model_folder
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.config.units import format_bytes
from inference_server.model_manager.arrival import Arrivals, Planner
from inference_server.model_manager.budget import MemoryBudget
from inference_server.model_manager.departure import Departures
from inference_server.model_manager.devices import DeviceProbe
from inference_server.model_manager.forecast import Forecast, Outcome, forecast_of, too_large
from inference_server.model_manager.keep_alive import KeepAlive
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.line import MemoryLine
from inference_server.model_manager.load_times import LoadTimes
from inference_server.model_manager.memory_view import MemoryView
from inference_server.model_manager.observer import EvictionReason, ManagerObserver
from inference_server.model_manager.record import ModelRecord, Residency
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.swapping import rules_of
from inference_server.model_manager.table import ModelTable
from inference_server.model_manager.waiting_time import time_to_ready_s
from inference_server.model_manager.warm_tier import Victim
from inference_server.worker.launcher import WorkerLauncher


class Lifecycle:
    """The states of all models. See `ModelManager` for the arguments."""

    def __init__(
        self,
        specs: Iterable[ModelSpec],
        settings: Settings,
        launcher: WorkerLauncher,
        *,
        budget: MemoryBudget,
        devices: DeviceProbe,
        planner: Planner,
        clock: Callable[[], float],
        observer: ManagerObserver,
        process_bytes: Callable[[int], int],
        load_times: LoadTimes,
    ) -> None:
        rules = rules_of(settings)
        self.table = ModelTable(specs, budget=budget, clock=clock, observer=observer)
        self._view = MemoryView(
            self.table,
            devices=devices,
            process_bytes=process_bytes,
            load_times=load_times,
            min_residency_s=rules.min_residency_s,
        )
        self.line = MemoryLine(
            budget,
            available=self._view.available_bytes,
            residents=self._view.residents,
            evict=self._evict,
            rules=rules,
            clock=clock,
            changed=self.table.ring,
        )
        self.keep_alive = KeepAlive(clock, self._expire)
        self._departures = Departures(
            self.table, self._view, serve=self.line.serve, settled=self.keep_alive.watch
        )
        self.arrivals = Arrivals(
            self.table,
            self._view,
            self.line,
            self._departures,
            launcher=launcher,
            planner=planner,
            settings=settings,
            load_times=load_times,
            settled=self.keep_alive.watch,
        )
        self._load_times = load_times
        self._clock = clock
        self._planner = planner
        self._cache_dir = Path(settings.cache_dir)

    # ------------------------------------------------------------ leases

    def try_lease(self, record: ModelRecord, arrived_s: float, keep_alive_s: float | None) -> Lease | None:
        """A lease, if the model is ready and it is the turn of who came at `arrived_s`."""
        residency = record.residency
        if record.state is not ModelState.READY or residency is None or residency.worker.is_dying:
            return None
        if not self.line.rules.collate and self._comes_after(record, arrived_s):
            return None
        residency.open_lease(self._clock())
        self.keep_alive.watch(record)
        on_release = functools.partial(self._release, record, residency, keep_alive_s)
        return Lease(record.spec, residency.worker, residency.plan, on_release)

    def _comes_after(self, record: ModelRecord, arrived_s: float) -> bool:
        """Whether a request for a model in memory must let an earlier one for another model go first.

        That is so in order of arrival, and if that one needs bytes where this model could give some.
        """
        if record.spec.pinned:
            return False
        held = self.table.budget.reservation(record.spec.name).keys()
        return any(
            other.oldest_wait_s is not None
            and other.oldest_wait_s < arrived_s
            and other.plan is not None
            and not held.isdisjoint(other.plan.bytes_by_device)
            and self._is_to_be_served(other)
            for other in self.table.records.values()
            if other is not record
        )

    def _is_to_be_served(self, record: ModelRecord) -> bool:
        """Whether a model that is waited for stands in the line, or is about to."""
        if record.state is ModelState.LOADING:
            is_granted = bool(self.table.budget.reservation(record.spec.name))
            return not is_granted or self.line.is_waiting(record.spec.name)
        return record.state not in (ModelState.READY, ModelState.FAILED)

    def _release(self, record: ModelRecord, residency: Residency, keep_alive_s: float | None) -> None:
        residency.close_lease(self._clock(), keep_alive_s)
        if record.residency is residency:
            self.keep_alive.watch(record)
        self.line.serve()

    # ------------------------------------------------------------ out

    def depart(self, record: ModelRecord, reason: EvictionReason) -> asyncio.Task[None] | None:
        """Unload the model when its leases are over; the task that does it, None if it is not in memory."""
        return self._departures.begin(record, reason)

    def put_to_sleep(self, record: ModelRecord) -> asyncio.Task[None]:
        """Let the model sleep when its leases are over.

        Raises:
            SleepUnsupported: it cannot, or it is not in memory.
        """
        name, residency = record.spec.name, record.residency
        if record.state is not ModelState.READY or residency is None:
            raise errors.SleepUnsupported(
                f"{name!r} is {record.state}; only a loaded model can be put to sleep"
            )
        if not residency.can_sleep:
            why = residency.worker.ready.why_not_sleep or "its worker does not support it"
            raise errors.SleepUnsupported(f"{name!r} cannot sleep: {why}")
        departure = self._departures.begin(record, "request", sleeps=True)
        if departure is None:
            raise errors.InternalError(f"{name!r} is ready and cannot leave")
        return departure

    def clear_failure(self, record: ModelRecord) -> None:
        """Forget a failed load."""
        record.failure = None
        if record.state is ModelState.FAILED:
            self.table.move(record, ModelState.UNLOADED)

    def _evict(self, victims: Sequence[Victim]) -> None:
        """Also a sleeper that waits to wake goes, if who stands before it needs what it holds."""
        self._departures.evict(victims)
        for victim in victims:
            record = self.table.records[victim.name]
            if record.state is ModelState.LOADING:
                self.arrivals.cancel(record)

    def _expire(self, record: ModelRecord) -> None:
        self._departures.begin(record, "idle")

    # ------------------------------------------------------------ what would be

    async def forecast(self, record: ModelRecord) -> Forecast:
        """What a request for the model would meet now. Fetches nothing.

        Raises:
            ConfigError, FetchFailed, ModelLoadFailed: its files contradict its entry, or are damaged.
        """
        spec = record.spec
        if record.residency is not None:
            return Forecast(Outcome.RESIDENT, f"it is {record.state}", record.residency.plan)
        folder = Path(record.folder) if record.folder else await asyncio.to_thread(self._kept_folder, spec)
        if folder is None:
            return Forecast(Outcome.UNKNOWN, "its files are not here yet; the plan is made from them")
        plan = await self._planner(spec, folder, self._view.obtainable_bytes())
        if (refusal := too_large(spec.name, plan, self.table.budget.capacity_bytes)) is not None:
            return refusal
        return forecast_of(spec.name, plan, self.line.consider(spec.name, plan.bytes_by_device))

    def _kept_folder(self, spec: ModelSpec) -> Path | None:
        return model_folder(spec.source, spec.revision, self._cache_dir)

    # ------------------------------------------------------------ configuration

    def retire(self, record: ModelRecord) -> None:
        """The model is configured no more: it goes when its leases are over, and its record with it."""
        record.is_retired = True
        if record.state in (ModelState.UNLOADED, ModelState.FAILED):
            del self.table.records[record.spec.name]
            self.table.ring()
        else:
            self.arrivals.cancel(record, "was removed from the configuration while it was loading")
            self._departures.begin(record, "removed")

    def adopt(self, record: ModelRecord, spec: ModelSpec, *, reloads: bool) -> None:
        """The model has a new entry. With `reloads` it leaves memory, and the next request loads it anew."""
        record.spec = spec
        record.is_retired = False
        if reloads:
            record.folder = record.plan = record.failure = None
            self.arrivals.cancel(record)
            self._departures.begin(record, "removed")
        self.keep_alive.watch(record)
        self.line.serve()

    # ------------------------------------------------------------ waiting

    def retry_after_s(self, record: ModelRecord) -> float:
        """Seconds until the model may be ready, from what was measured."""
        num_bytes = sum(record.plan.bytes_by_device.values()) if record.plan is not None else 0
        return time_to_ready_s(
            record,
            self._clock(),
            load_s=self._load_times.estimate_s(record.spec, num_bytes),
            turn_s=self.line.rules.max_swap_wait_s + self.line.rules.min_residency_s,
        )

    def too_late(self, record: ModelRecord) -> errors.HelixFlowError:
        """The error for an acquirer whose deadline passed while it waited."""
        name, retry_after_s = record.spec.name, self.retry_after_s(record)
        if record.plan is not None and self.line.is_waiting(name):
            needed = ", ".join(f"{format_bytes(n)} on {d}" for d, n in record.plan.bytes_by_device.items())
            return errors.InsufficientMemory(
                f"{name!r} needs {needed}; the models in memory were in use until the deadline",
                retry_after_s=retry_after_s,
            )
        return errors.ModelLoading(
            f"{name!r} was not ready before the request's deadline ({record.state}); it may be in about "
            f"{retry_after_s:.0f} s",
            retry_after_s=retry_after_s,
        )

    async def join(self, record: ModelRecord, task: asyncio.Future[Any], deadline_s: float | None) -> None:
        """Wait for somebody else's task without ever cancelling it.

        Raises:
            ModelLoading, InsufficientMemory: `deadline_s` passed before.
        """
        timeout_s = None if deadline_s is None else max(0.0, deadline_s - self._clock())
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise self.too_late(record)
