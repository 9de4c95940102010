"""Takes models out of memory: drain, then sleep or stop. Owner: the event loop.

A departure is a drain, not a kill: it waits for the open leases. Bytes are given back only when the process
is gone, or says that it sleeps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from inference_server import errors
from inference_server.model_manager.memory_view import MemoryView
from inference_server.model_manager.observer import EvictionReason
from inference_server.model_manager.record import ModelRecord, Residency
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.table import ModelTable
from inference_server.model_manager.warm_tier import Victim
from inference_server.worker.handle import Worker

logger = logging.getLogger(__name__)
_WHY: Mapping[EvictionReason, str] = {
    "memory": "its memory is needed",
    "idle": "nobody has used it for its keep_alive",
    "request": "by request",
    "removed": "the configuration has changed",
}


class Departures:
    """The tasks in which models leave. `serve` looks after those who wait for memory, `settled` is told of
    each model that has fallen asleep."""

    def __init__(
        self,
        table: ModelTable,
        view: MemoryView,
        *,
        serve: Callable[[], None],
        settled: Callable[[ModelRecord], None],
    ) -> None:
        self._table = table
        self._view = view
        self._serve = serve
        self._settled = settled

    def evict(self, victims: Sequence[Victim]) -> None:
        """Let them go for others, each as it was chosen to. Who sleeps waits for those who make room."""
        records = self._table.records
        leaving = [
            task
            for victim in victims
            if not victim.sleeps and (task := self.begin(records[victim.name], "memory")) is not None
        ]
        for victim in victims:
            if victim.sleeps:
                self.begin(records[victim.name], "memory", sleeps=True, after=leaving)

    def begin(
        self,
        record: ModelRecord,
        reason: EvictionReason,
        *,
        sleeps: bool = False,
        after: Iterable[asyncio.Task[None]] = (),
    ) -> asyncio.Task[None] | None:
        """Take no new leases, wait for the open ones, then sleep or stop the worker.

        Returns the task that does it, also one under way; None if there is nothing to leave. Without
        `sleeps`, a departure under way ends without sleeping, too.
        """
        residency = record.residency
        if residency is not None:
            residency.may_sleep = residency.may_sleep and sleeps
        is_staying = record.state in (ModelState.READY, ModelState.SLEEPING)
        if record.departure is None and is_staying and residency is not None:
            logger.info("%s %s: %s", record.spec.name, "goes to sleep" if sleeps else "leaves", _WHY[reason])
            self._table.observer.on_eviction(record.spec.name, reason)
            self._table.move(record, ModelState.DRAINING)
            record.departure = asyncio.create_task(
                self._depart(record, residency, tuple(after)), name=f"unload {record.spec.name}"
            )
        return record.departure

    def vacate(self, record: ModelRecord) -> None:
        """The worker process is gone: its bytes are free and the next request loads the model anew."""
        if record.residency is not None and record.residency.expiry is not None:
            record.residency.expiry.cancel()
        record.residency = None
        self._table.budget.release(record.spec.name)
        if record.state is not ModelState.LOADING:  # a wake that failed goes on as a load
            self._table.move(record, ModelState.UNLOADED)
        self._serve()

    async def _depart(
        self, record: ModelRecord, residency: Residency, after: tuple[asyncio.Task[None], ...]
    ) -> None:
        await residency.quiet.wait()
        self._serve()  # its bytes now count as on their way back
        if after and residency.may_sleep:
            await asyncio.wait(after)
        if residency.may_sleep and await self._fall_asleep(record, residency):
            record.departure = None
            self._table.move(record, ModelState.SLEEPING)
            self._table.observer.on_sleep(record.spec.name)
            self._settled(record)
        else:
            await stop_for_good(record.spec.name, residency.worker)
            record.departure = None
            self.vacate(record)
        self._serve()

    async def _fall_asleep(self, record: ModelRecord, residency: Residency) -> bool:
        """Whether the worker sleeps and holds no more than its sleeping bytes."""
        name, worker = record.spec.name, residency.worker
        if worker.closed.done() or not self._reserve_copy(name, residency.plan.sleeping_bytes_by_device):
            return False
        try:
            await worker.sleep()
        except errors.HelixFlowError as error:
            logger.warning("%s is unloaded instead of put to sleep: %s", name, error.message)
        except Exception:
            logger.exception("putting %s to sleep failed", name)
        else:
            if residency.may_sleep and not worker.closed.done():
                self._table.budget.resize(name, residency.plan.sleeping_bytes_by_device)
                return True
        return False

    def _reserve_copy(self, name: str, sleeping: Mapping[str, int]) -> bool:
        """While weights are copied they are in both places; whether there is room for that."""
        held, free = self._table.budget.reservation(name), self._view.available_bytes()
        both = {device: max(held.get(device, 0), sleeping.get(device, 0)) for device in {*held, *sleeping}}
        if any(num_bytes - held.get(device, 0) > free.get(device, 0) for device, num_bytes in both.items()):
            return False
        self._table.budget.resize(name, both)
        return True


async def stop_for_good(name: str, worker: Worker) -> None:
    """Return only when the process is gone: until then its bytes are not free, whatever else went wrong."""
    if not worker.closed.done():
        try:
            await worker.stop()
        except Exception:
            logger.exception("stopping the worker of %s failed", name)
    await asyncio.wait({worker.closed})
