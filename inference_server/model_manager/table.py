"""The table of models: every record, and the one place that changes a state. Owner: the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from inference_server.config.catalog import ModelSpec
from inference_server.model_manager.budget import MemoryBudget
from inference_server.model_manager.observer import ManagerObserver
from inference_server.model_manager.record import ModelRecord
from inference_server.model_manager.states import ModelState, check_transition
from inference_server.model_manager.status import ModelStatus, status_of
from inference_server.model_manager.watching import Watchers
from inference_server.worker.protocol import Progress

UNDER_WAY = frozenset({ModelState.FETCHING, ModelState.LOADING})
GONE = frozenset({ModelState.UNLOADED, ModelState.FAILED})


class ModelTable:
    """Records by configured name, in the configuration's order. `clock` gives monotonic seconds."""

    def __init__(
        self,
        specs: Iterable[ModelSpec],
        *,
        budget: MemoryBudget,
        clock: Callable[[], float],
        observer: ManagerObserver,
    ) -> None:
        self.records = {spec.name: ModelRecord(spec) for spec in specs}
        self.budget = budget
        self.clock = clock
        self.observer = observer
        self.watchers = Watchers()
        self._bell: asyncio.Future[None] | None = None

    def move(self, record: ModelRecord, state: ModelState) -> None:
        """The model is now in `state`. One that is configured no more is forgotten when it is gone."""
        check_transition(record.state, state)
        record.state = state
        record.state_since_s = self.clock()
        if state not in UNDER_WAY:
            record.report(None)
        self.observer.on_state(record.spec.name, state)
        if self.watchers:
            self.watchers.publish(self.status(record))
        if record.is_retired and state in GONE:
            del self.records[record.spec.name]
        self.ring()

    def report(self, record: ModelRecord, progress: Progress) -> None:
        """A load has come so far."""
        record.report(progress)
        if self.watchers:
            self.watchers.publish(self.status(record))

    def status(self, record: ModelRecord) -> ModelStatus:
        """The snapshot of one record."""
        return status_of(record, self.budget.reservation(record.spec.name), self.clock())

    def sort_like(self, names: Iterable[str]) -> None:
        """Put the records into this order; those not named come last."""
        self.records = {
            name: self.records[name]
            for name in dict.fromkeys([*names, *self.records])
            if name in self.records
        }

    # ------------------------------------------------------------ the bell

    @property
    def bell(self) -> asyncio.Future[None]:
        """Done at the next change of any state or of the line. Never cancel it: others wait for it, too."""
        if self._bell is None:
            self._bell = asyncio.get_running_loop().create_future()
        return self._bell

    def ring(self) -> None:
        """Something has changed for those who wait for their turn."""
        bell, self._bell = self._bell, None
        if bell is not None and not bell.done():
            bell.set_result(None)
