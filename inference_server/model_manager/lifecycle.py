"""Moves models through their states: fetch → plan → reserve → launch, and back out again.

Owner of every record, of the budget and of the tasks that load and stop models; all on the event loop, no
locks. A load belongs to this object and not to who asked for it. Who waits, and how long, is `manager.py`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from inference_server import errors
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.config.units import format_bytes
from inference_server.model_manager.admission import MemoryLine, Withdrawn
from inference_server.model_manager.budget import MemoryBudget
from inference_server.model_manager.devices import HOST, DeviceProbe, resident_bytes
from inference_server.model_manager.eviction import Hold, Resident
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.observer import ManagerObserver
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.record import Failure, ModelRecord, Residency
from inference_server.model_manager.states import ModelState, check_transition
from inference_server.worker.handle import Worker
from inference_server.worker.launcher import WorkerLauncher
from inference_server.worker.protocol import Prepare, Progress

Planner = Callable[[ModelSpec, Path, Mapping[str, int]], Awaitable[ModelPlan]]
UNDER_WAY = frozenset({ModelState.FETCHING, ModelState.LOADING})
logger = logging.getLogger(__name__)


class Lifecycle:
    """The states of all models, and the only place that changes them."""

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
        process_bytes: Callable[[int], int] = resident_bytes,
    ) -> None:
        self.records = {spec.name: ModelRecord(spec) for spec in specs}
        self.budget = budget
        self._settings = settings
        self._launcher = launcher
        self._devices = devices
        self._planner = planner
        self._clock = clock
        self._observer = observer
        self._process_bytes = process_bytes
        self.line = MemoryLine(
            budget, available=self._available_bytes, residents=self._residents, evict=self._evict
        )

    # ------------------------------------------------------------ leases

    def try_lease(self, record: ModelRecord) -> Lease | None:
        """A lease, if the model is ready."""
        residency = record.residency
        if record.state is not ModelState.READY or residency is None or residency.worker.closed.done():
            return None
        residency.open_lease(self._clock())
        on_release = functools.partial(self._release, residency)
        return Lease(record.spec, residency.worker, residency.plan, on_release)

    def _release(self, residency: Residency) -> None:
        residency.close_lease(self._clock())
        self.line.serve()

    # ------------------------------------------------------------ in

    def ensure_loading(self, record: ModelRecord) -> asyncio.Task[errors.HelixFlowError | None]:
        """The load of `record`: the one under way, or a new one.

        Its result is None or the error; None also when the load was withdrawn because nobody waited. It is
        cancelled only by `cancel_load`.
        """
        if record.load is None:
            record.load = asyncio.create_task(self._load(record), name=f"load {record.spec.name}")
            record.load.add_done_callback(functools.partial(self._load_ended, record))
            self._move(record, ModelState.FETCHING)
        return record.load

    def cancel_load(self, record: ModelRecord) -> asyncio.Task[errors.HelixFlowError | None] | None:
        """Stop a load under way; the returned task ends when its process is gone."""
        if record.load is not None and not record.load.cancelling():
            record.load.cancel()  # once: a second time would cut the wait for the process short
        return record.load

    async def _load(self, record: ModelRecord) -> errors.HelixFlowError | None:
        started_s = self._clock()
        try:
            await self._bring_up(record)
        except Withdrawn:
            return None  # `_load_ended` puts the record back
        except errors.HelixFlowError as error:
            return self._fail(record, _as_unavailable(record.spec.name, error), started_s)
        except Exception:
            logger.exception("loading %s failed in an unforeseen way", record.spec.name)
            unforeseen = errors.ModelLoadFailed(f"{record.spec.name!r} could not be loaded: internal error")
            return self._fail(record, unforeseen, started_s)
        self._observer.on_load(record.spec.name, self._clock() - started_s, True)
        return None

    async def _bring_up(self, record: ModelRecord) -> None:
        if record.folder is None:
            prepared = await self._launcher.prepare(
                prepare_message(record.spec, self._settings), record.report
            )
            record.folder = prepared.folder
        self._move(record, ModelState.LOADING)
        plan = await self._planner(record.spec, Path(record.folder), self._obtainable_bytes())
        record.plan = plan
        self._refuse_if_too_large(record.spec.name, plan)
        record.report(Progress(stage="memory"))
        await self.line.reserve(record.spec.name, plan.bytes_by_device, lambda: record.num_waiting > 0)
        try:
            worker = await self._launcher.launch(plan.load, record.report)
        except BaseException:
            self.budget.release(record.spec.name)  # the launcher has seen the process end
            raise
        self._become_ready(record, Residency(worker, plan, self._clock()))

    def _become_ready(self, record: ModelRecord, residency: Residency) -> None:
        record.residency = residency
        record.failure = None
        self._move(record, ModelState.READY)
        residency.worker.on_step = functools.partial(self._observer.on_step, record.spec.name)
        residency.worker.closed.add_done_callback(functools.partial(self._worker_closed, record, residency))
        ready = residency.worker.ready
        logger.info(
            "%s is ready on %s (%s, loaded in %.1f s, %s reserved)",
            record.spec.name,
            ready.device,
            ready.dtype,
            ready.load_seconds,
            format_bytes(sum(residency.plan.bytes_by_device.values())),
        )

    def _fail(
        self, record: ModelRecord, error: errors.HelixFlowError, started_s: float
    ) -> errors.HelixFlowError:
        now_s = self._clock()
        num_before = record.failure.num_in_a_row if record.failure is not None else 0
        record.failure = Failure(error=error, at_s=now_s, num_in_a_row=num_before + 1)
        if not isinstance(error, errors.InsufficientMemory):
            record.folder = None  # it may be what is wrong; the next try prepares it again
        self._move(record, ModelState.FAILED)
        self._observer.on_load(record.spec.name, now_s - started_s, False)
        logger.warning("%s", error.message)
        return error

    def _load_ended(self, record: ModelRecord, load: asyncio.Task[errors.HelixFlowError | None]) -> None:
        record.load = None
        if record.state in UNDER_WAY:  # cancelled (perhaps before its first step) or withdrawn
            self._move(record, ModelState.UNLOADED)
        if not load.cancelled() and (fault := load.exception()) is not None:
            logger.error("the load of %s broke", record.spec.name, exc_info=fault)
        self.line.serve()

    # ------------------------------------------------------------ out

    def begin_departure(self, record: ModelRecord) -> asyncio.Task[None] | None:
        """Take no new leases, wait for the open ones, stop the worker. Returns the task that does it."""
        residency = record.residency
        if record.departure is None and record.state is ModelState.READY and residency is not None:
            self._move(record, ModelState.DRAINING)
            record.departure = asyncio.create_task(
                self._depart(record, residency), name=f"unload {record.spec.name}"
            )
        return record.departure

    def clear_failure(self, record: ModelRecord) -> None:
        """Forget a failed load."""
        if record.state is ModelState.FAILED:
            record.failure = None
            self._move(record, ModelState.UNLOADED)

    async def _depart(self, record: ModelRecord, residency: Residency) -> None:
        await residency.quiet.wait()
        self.line.serve()  # its bytes now count as on their way back
        await _stop_for_good(record.spec.name, residency.worker)
        record.departure = None
        self._vacate(record)

    def _worker_closed(self, record: ModelRecord, residency: Residency, closed: asyncio.Future[str]) -> None:
        residency.abandon()
        if record.residency is residency and record.state is ModelState.READY:
            logger.warning("the worker of %s ended by itself: %s", record.spec.name, closed.result())
            self._observer.on_worker_died(record.spec.name)
            self._vacate(record)

    def _vacate(self, record: ModelRecord) -> None:
        """The worker process is gone: its bytes are free and the next request loads the model anew."""
        record.residency = None
        self.budget.release(record.spec.name)
        self._move(record, ModelState.UNLOADED)
        self.line.serve()

    def _evict(self, name: str) -> None:
        logger.info("%s is evicted: its memory is needed", name)
        self._observer.on_eviction(name, "memory")
        self.begin_departure(self.records[name])

    # ------------------------------------------------------------ memory

    def _refuse_if_too_large(self, name: str, plan: ModelPlan) -> None:
        for device, needed in plan.bytes_by_device.items():
            budget = self.budget.capacity_bytes.get(device, 0)
            if needed > budget:
                raise errors.InsufficientMemory(
                    f"{name!r} needs {format_bytes(needed)} on {device}, more than the whole memory budget "
                    f"of {format_bytes(budget)} there"
                )

    def _obtainable_bytes(self) -> dict[str, int]:
        """What each device could give if everything but the pinned models left it."""
        return {
            device: capacity - sum(r.bytes_by_device.get(device, 0) for r in self._residents() if r.pinned)
            for device, capacity in self.budget.capacity_bytes.items()
        }

    def _available_bytes(self) -> dict[str, int]:
        """Per device, the smaller of what the budget has left and what is really free and not promised."""
        free = {name: memory.free_bytes for name, memory in self._devices().items()}
        for name, record in self.records.items():
            for device, num_bytes in self._promised_bytes(name, record).items():
                if device in free:
                    free[device] -= num_bytes
        return {
            device: max(0, min(self.budget.unreserved_bytes(device), free.get(device, 0)))
            for device in self.budget.capacity_bytes
        }

    def _promised_bytes(self, name: str, record: ModelRecord) -> dict[str, int]:
        """Bytes that `name` has reserved and not touched yet: all of a load under way; of a ready worker
        what the host has only promised it (a KV cache there takes pages as it fills)."""
        reserved = self.budget.reservation(name)
        if record.residency is None:
            return dict(reserved)
        used = self._process_bytes(record.residency.worker.pid)
        return {HOST: max(0, reserved.get(HOST, 0) - used)}

    def _residents(self) -> list[Resident]:
        return [
            Resident(
                name=name,
                bytes_by_device=self.budget.reservation(name),
                last_used_s=record.residency.last_used_s if record.residency else self._clock(),
                num_leases=record.num_waiting + (record.residency.num_leases if record.residency else 0),
                pinned=record.spec.pinned,
                hold=_hold(record),
            )
            for name, record in self.records.items()
            if self.budget.reservation(name)
        ]

    # ------------------------------------------------------------ the one place

    def _move(self, record: ModelRecord, state: ModelState) -> None:
        check_transition(record.state, state)
        record.state = state
        record.state_since_s = self._clock()
        if state not in UNDER_WAY:
            record.report(None)
        self._observer.on_state(record.spec.name, state)


def prepare_message(spec: ModelSpec, settings: Settings) -> Prepare:
    """What a preparation job is told of a model."""
    return Prepare(
        source=spec.source,
        revision=spec.revision,
        sha256=spec.sha256,
        cache_dir=settings.cache_dir,
        allow_pickle=spec.allow_pickle,
        trust_remote_code=spec.trust_remote_code,
    )


def _hold(record: ModelRecord) -> Hold:
    if record.state is ModelState.READY:
        return Hold.READY
    residency = record.residency
    is_leaving = record.state is ModelState.DRAINING and residency is not None and residency.quiet.is_set()
    return Hold.LEAVING if is_leaving else Hold.LOADING


async def _stop_for_good(name: str, worker: Worker) -> None:
    """Return only when the process is gone: until then its bytes are not free, whatever else went wrong."""
    if not worker.closed.done():
        try:
            await worker.stop()
        except Exception:
            logger.exception("stopping the worker of %s failed", name)
    await asyncio.wait({worker.closed})


def _as_unavailable(name: str, error: errors.HelixFlowError) -> errors.HelixFlowError:
    """A load's error as those who wait for the model see it: the server's trouble, never their request's."""
    if isinstance(error, errors.Unavailable):
        return error
    return errors.ModelLoadFailed(f"{name!r} could not be loaded: {error.message}")


def too_late(record: ModelRecord, line: MemoryLine) -> errors.HelixFlowError:
    """The error for an acquirer whose deadline passed while it waited."""
    name = record.spec.name
    if record.plan is not None and line.is_waiting(name):
        needed = ", ".join(f"{format_bytes(n)} on {d}" for d, n in record.plan.bytes_by_device.items())
        return errors.InsufficientMemory(
            f"{name!r} needs {needed}; the models in memory were in use until the deadline", retry_after_s=5.0
        )
    return errors.DeadlineExceeded(f"{name!r} was not ready before the request's deadline ({record.state})")
