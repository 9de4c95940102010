"""Those who wait for a model: they join its load or its departure, wait for their turn, and give up in time.

Owner: the event loop. Knows neither what a load does nor who gets memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from inference_server import errors
from inference_server.model_manager.cooldown import remembered
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.lifecycle import Lifecycle
from inference_server.model_manager.observer import ManagerObserver
from inference_server.model_manager.record import ModelRecord, ProgressListener
from inference_server.model_manager.states import ModelState

MAX_DEATHS_PER_WAIT = 3  # a worker that ends right after it was ready is not restarted for ever


@dataclass(frozen=True, slots=True)
class Wait:
    """One acquirer that waits, and since when. `num_deaths`: of the model's workers, before it came."""

    record: ModelRecord
    arrived_s: float
    deadline_s: float | None
    keep_alive_s: float | None
    retries: bool
    num_deaths: int


class Waiting:
    """Waits for leases. Once `is_over`, everybody who waits or comes is refused: the server ends."""

    def __init__(self, lifecycle: Lifecycle, clock: Callable[[], float], observer: ManagerObserver) -> None:
        self.is_over = False
        self._lifecycle = lifecycle
        self._clock = clock
        self._observer = observer

    async def wait_for_lease(self, wait: Wait, on_progress: ProgressListener | None) -> Lease:
        """Return with a lease; raises as `ModelManager.acquire` does."""
        record = wait.record
        with self._waiting(record, wait.arrived_s, on_progress):
            while (lease := self._lifecycle.try_lease(record, wait.arrived_s, wait.keep_alive_s)) is None:
                self._refuse_if_hopeless(wait)
                if record.state is ModelState.READY:  # not its turn, or its worker is gone and soon noticed
                    await self._lifecycle.join(record, self._lifecycle.table.bell, wait.deadline_s)
                elif record.departure is not None:
                    await self._lifecycle.join(record, record.departure, wait.deadline_s)
                else:
                    await self._join_load(wait)
        self._observer.on_swap_wait(record.spec.name, self._clock() - wait.arrived_s)
        return lease

    async def _join_load(self, wait: Wait) -> None:
        """Wait for the load under way, or a new one. Returns also if it ended without the model."""
        record, failure = wait.record, wait.record.failure
        if wait.deadline_s is not None and wait.deadline_s <= self._clock():
            raise self._lifecycle.too_late(record)
        if record.load is None and failure is not None and failure.rest_s(self._clock()) and not wait.retries:
            raise remembered(failure, self._clock())
        load = self._lifecycle.arrivals.ensure_loading(record)
        await self._lifecycle.join(record, load, wait.deadline_s)
        self._refuse_if_stopping()
        if load.cancelled():
            if record.cancel_reason:
                raise errors.ModelLoadFailed(
                    f"{record.spec.name!r} {record.cancel_reason}", retry_after_s=1.0
                )
        elif (error := load.result()) is not None:
            raise _copy(error) from error

    @contextlib.contextmanager
    def _waiting(
        self, record: ModelRecord, arrived_s: float, on_progress: ProgressListener | None
    ) -> Iterator[None]:
        """Count as somebody who wants the model: it is not evicted meanwhile, nor its load withdrawn."""
        try:
            with record.waiting(arrived_s), record.listening(on_progress):
                yield
        finally:
            self._lifecycle.keep_alive.watch(record)
            self._lifecycle.table.ring()  # those who came later may have waited for this one
            self._lifecycle.line.serve()

    def _refuse_if_hopeless(self, wait: Wait) -> None:
        self._refuse_if_stopping()
        record = wait.record
        if record.is_retired:
            raise errors.UnknownModel(
                f"The model {record.spec.name!r} was removed from the configuration", param="model"
            )
        if record.num_deaths - wait.num_deaths >= MAX_DEATHS_PER_WAIT:
            if record.failure is not None:  # one who waited as long has said so already
                raise remembered(record.failure, self._clock())
            error = errors.ModelLoadFailed(f"{record.spec.name!r} ends whenever it has been loaded")
            self._lifecycle.arrivals.remember(record, error, cools_down=True)
            raise error

    def _refuse_if_stopping(self) -> None:
        if self.is_over:
            raise errors.ShuttingDown("the server is shutting down")


def _copy(error: errors.HelixFlowError) -> errors.HelixFlowError:
    """Each waiter raises its own: one exception object must not travel through several tasks."""
    return type(error)(error.message, param=error.param, retry_after_s=error.retry_after_s)
