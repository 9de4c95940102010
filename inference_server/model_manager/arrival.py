"""Brings models into memory: fetch → plan → reserve → launch, or reserve → wake. Owner: the event loop.

A load belongs to this object and not to who asked for it: there is one per model, and a client that leaves
never aborts it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from inference_server import errors
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.config.units import format_bytes
from inference_server.model_manager.cooldown import next_failure
from inference_server.model_manager.departure import Departures, stop_for_good
from inference_server.model_manager.forecast import too_large
from inference_server.model_manager.line import MemoryLine, Withdrawn
from inference_server.model_manager.load_times import LoadTimes
from inference_server.model_manager.memory_view import MemoryView
from inference_server.model_manager.observer import LoadSource
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.record import ModelRecord, Residency
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.table import UNDER_WAY, ModelTable
from inference_server.worker.launcher import WorkerLauncher
from inference_server.worker.protocol import Prepare, Progress

Planner = Callable[[ModelSpec, Path, Mapping[str, int]], Awaitable[ModelPlan]]
Load = asyncio.Task[errors.HelixFlowError | None]
logger = logging.getLogger(__name__)


class _NoMemory(Exception):  # noqa: N818 - an outcome
    """The budget refuses the model. Asking again costs nothing, so that this needs no cooldown."""

    def __init__(self, error: errors.InsufficientMemory) -> None:
        super().__init__(error.message)
        self.error = error


class Arrivals:
    """The tasks in which models come. `settled` is told of each model that has become ready."""

    def __init__(
        self,
        table: ModelTable,
        view: MemoryView,
        line: MemoryLine,
        departures: Departures,
        *,
        launcher: WorkerLauncher,
        planner: Planner,
        settings: Settings,
        load_times: LoadTimes,
        settled: Callable[[ModelRecord], None],
    ) -> None:
        self._table = table
        self._view = view
        self._line = line
        self._departures = departures
        self._launcher = launcher
        self._planner = planner
        self._settings = settings
        self._load_times = load_times
        self._settled = settled

    def ensure_loading(self, record: ModelRecord) -> Load:
        """The load or wake of `record`: the one under way, or a new one.

        Its result is None or the error; None also when the load was withdrawn because nobody waited. It is
        cancelled only by `cancel`.
        """
        if record.load is None:
            is_wake = record.state is ModelState.SLEEPING
            record.load_since_s = self._table.clock()
            record.load = asyncio.create_task(self._load(record), name=f"load {record.spec.name}")
            record.load.add_done_callback(functools.partial(self._ended, record))
            self._table.move(record, ModelState.LOADING if is_wake else ModelState.FETCHING)
        return record.load

    def cancel(self, record: ModelRecord, reason: str = "") -> Load | None:
        """Stop a load under way; the returned task ends when its process is gone.

        `reason` ends a sentence about the model; without one, those who wait start a new load.
        """
        if record.load is not None and not record.load.cancelling():
            record.cancel_reason = reason
            record.load.cancel()  # once: a second time would cut the wait for the process short
        return record.load

    # ------------------------------------------------------------ the task

    async def _load(self, record: ModelRecord) -> errors.HelixFlowError | None:
        source: LoadSource = "disk"
        try:
            if record.residency is not None and await self._wake(record, record.residency):
                return None
            source = await self._prepare(record)
            await self._launch(record, await self._reserve(record))
        except Withdrawn:
            return None  # `_ended` puts the record back
        except _NoMemory as refusal:
            return self._fail(record, refusal.error, source, cools_down=False)
        except errors.HelixFlowError as error:
            return self._fail(record, as_unavailable(record.spec.name, error), source)
        except Exception:
            logger.exception("loading %s failed in an unforeseen way", record.spec.name)
            unforeseen = errors.ModelLoadFailed(f"{record.spec.name!r} could not be loaded: internal error")
            return self._fail(record, unforeseen, source)
        self._table.observer.on_load(record.spec.name, self._elapsed_s(record), True, source)
        return None

    async def _prepare(self, record: ModelRecord) -> LoadSource:
        """Its files are there: `record.folder`."""
        stages: set[str] = set()

        def report(progress: Progress) -> None:
            stages.add(progress.stage)
            self._table.report(record, progress)

        if record.folder is None:
            prepared = await self._launcher.prepare(prepare_message(record.spec, self._settings), report)
            record.folder = prepared.folder
        if record.state is not ModelState.LOADING:
            self._table.move(record, ModelState.LOADING)
        return "hub" if "download" in stages else "disk"

    async def _reserve(self, record: ModelRecord) -> ModelPlan:
        """Its bytes are reserved."""
        name = record.spec.name
        plan = await self._planner(record.spec, Path(record.folder or ""), self._view.obtainable_bytes())
        record.plan = plan
        self._refuse_if_too_large(name, plan)
        self._table.report(record, Progress(stage="memory"))
        await self._stand_in_line(record, plan.bytes_by_device)
        return plan

    async def _stand_in_line(self, record: ModelRecord, total: Mapping[str, int]) -> None:
        try:
            await self._line.reserve(record.spec.name, total, lambda: record.oldest_wait_s)
        except errors.InsufficientMemory as error:
            raise _NoMemory(error) from error

    async def _launch(self, record: ModelRecord, plan: ModelPlan) -> None:
        """Its worker is ready."""
        name, started_s = record.spec.name, self._table.clock()
        try:
            worker = await self._launcher.launch(plan.load, functools.partial(self._table.report, record))
        except BaseException:
            self._table.budget.release(name)  # the launcher has seen the process end
            raise
        now_s = self._table.clock()
        self._load_times.record(record.spec, now_s - started_s, sum(plan.bytes_by_device.values()))
        residency = Residency(worker, plan, now_s)
        worker.on_step = functools.partial(self._table.observer.on_step, name)
        worker.closed.add_done_callback(functools.partial(self._closed, record, residency))
        self._report_estimate(name, plan, residency)
        logger.info(
            "%s is ready on %s (%s, loaded in %.1f s, %s reserved)",
            name,
            worker.ready.device,
            worker.ready.dtype,
            worker.ready.load_seconds,
            format_bytes(sum(plan.bytes_by_device.values())),
        )
        self._become_ready(record, residency)

    async def _wake(self, record: ModelRecord, residency: Residency) -> bool:
        """Whether the sleeping model is ready again; if not, its worker is gone and it must be loaded.

        Raises:
            _NoMemory, Withdrawn: as the line says; it sleeps on.
        """
        name, plan, worker = record.spec.name, residency.plan, residency.worker
        self._table.report(record, Progress(stage="memory"))
        held = self._table.budget.reservation(name)
        both = {d: max(held.get(d, 0), n) for d, n in {**held, **plan.bytes_by_device}.items()}
        await self._stand_in_line(record, both)
        started_s = self._table.clock()
        self._table.report(record, Progress(stage="wake"))
        try:
            await worker.wake()
        except errors.HelixFlowError as error:
            logger.warning("%s did not wake and is loaded anew: %s", name, error.message)
            await self._give_up(record, residency)
            return False
        except BaseException:
            await self._give_up(record, residency)
            raise
        if worker.closed.done():
            await self._give_up(record, residency)
            return False
        self._table.budget.resize(name, plan.bytes_by_device)
        seconds = self._table.clock() - started_s
        self._become_ready(record, residency)
        self._table.observer.on_wake(name, seconds)
        self._table.observer.on_load(name, self._elapsed_s(record), True, "ram")
        return True

    async def _give_up(self, record: ModelRecord, residency: Residency) -> None:
        """End a worker that should have woken, and free its bytes; a cancellation waits for that."""
        stopping = asyncio.ensure_future(stop_for_good(record.spec.name, residency.worker))
        try:
            await asyncio.shield(stopping)
        finally:
            while not stopping.done():
                await asyncio.wait({stopping})
            self._departures.vacate(record)

    def _become_ready(self, record: ModelRecord, residency: Residency) -> None:
        residency.ready_since_s = residency.last_used_s = self._table.clock()
        residency.gone_for = None
        record.residency = residency
        record.failure = None
        self._table.move(record, ModelState.READY)

    def _report_estimate(self, name: str, plan: ModelPlan, residency: Residency) -> None:
        memory = residency.worker.ready.memory
        planned = plan.weights_bytes + plan.kv_cache_bytes
        measured = memory.weights_bytes + memory.kv_cache_bytes
        if planned and measured:
            self._table.observer.on_estimate(name, measured / planned - 1)

    # ------------------------------------------------------------ ends

    def _fail(
        self,
        record: ModelRecord,
        error: errors.HelixFlowError,
        source: LoadSource,
        *,
        cools_down: bool = True,
    ) -> errors.HelixFlowError:
        if not isinstance(error, errors.InsufficientMemory):
            record.folder = None  # it may be what is wrong; the next try prepares it again
        self.remember(record, error, cools_down=cools_down)
        self._table.observer.on_load(record.spec.name, self._elapsed_s(record), False, source)
        if record.residency is None:  # else it could not wake, and sleeps on
            self._table.move(record, ModelState.FAILED)
        logger.warning("%s", error.message)
        return error

    def remember(self, record: ModelRecord, error: errors.HelixFlowError, *, cools_down: bool) -> None:
        """The model cannot be had now, and with `cools_down` is left alone for a while."""
        failure = next_failure(error, record.failure, self._table.clock(), cools_down=cools_down)
        record.failure = failure
        if cools_down:
            error.retry_after_s = failure.cooldown_s

    def _ended(self, record: ModelRecord, load: Load) -> None:
        record.load = None
        if record.state in UNDER_WAY:  # cancelled (perhaps before its first step), withdrawn, not woken
            self._put_back(record)
        if not load.cancelled() and (fault := load.exception()) is not None:
            logger.error("the load of %s broke", record.spec.name, exc_info=fault)
        self._settled(record)
        self._line.serve()

    def _put_back(self, record: ModelRecord) -> None:
        """The load has ended without the model, which is where it was before, if it may and can be."""
        residency = record.residency
        self._table.move(record, ModelState.UNLOADED if residency is None else ModelState.SLEEPING)
        if residency is None:
            return
        if residency.worker.closed.done():
            self._died(record, residency.worker.closed.result())
        elif residency.gone_for is not None:  # it was told to leave for good meanwhile
            self._departures.begin(record, residency.gone_for)

    def _closed(self, record: ModelRecord, residency: Residency, closed: asyncio.Future[str]) -> None:
        """A worker process has ended. One that departs or wakes is looked after by that task."""
        residency.abandon()
        if record.residency is residency and record.state in (ModelState.READY, ModelState.SLEEPING):
            self._died(record, closed.result())

    def _died(self, record: ModelRecord, reason: str) -> None:
        logger.warning("the worker of %s ended by itself: %s", record.spec.name, reason)
        record.num_deaths += 1
        self._table.observer.on_worker_died(record.spec.name)
        self._departures.vacate(record)

    def _refuse_if_too_large(self, name: str, plan: ModelPlan) -> None:
        if (refusal := too_large(name, plan, self._table.budget.capacity_bytes)) is not None:
            raise _NoMemory(errors.InsufficientMemory(refusal.message))

    def _elapsed_s(self, record: ModelRecord) -> float:
        return self._table.clock() - record.load_since_s


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


def as_unavailable(name: str, error: errors.HelixFlowError) -> errors.HelixFlowError:
    """A load's error as those who wait for the model see it: the server's trouble, never their request's."""
    if isinstance(error, errors.Unavailable):
        return error
    return errors.ModelLoadFailed(f"{name!r} could not be loaded: {error.message}")
