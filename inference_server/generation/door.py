"""What every kind of request passes: is the server leaving, is there a place, whose clock ends it, and what
is said of it afterwards.

Knows models by name and no prompts; `service.py` (text) and `embeddings.py` run what is let in. Owner: the
event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from inference_server.access.gate import Caller
from inference_server.config.kinds import shown
from inference_server.config.settings import Settings
from inference_server.errors import HelixFlowError, ShuttingDown, UnknownModel
from inference_server.generation.admission import Admission, Place, QueueLimits
from inference_server.generation.deadline import deadline
from inference_server.generation.recorder import Clock, RequestRecorder
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.record import ProgressListener
from inference_server.model_manager.status import ModelStatus
from inference_server.telemetry.metrics import Metrics
from inference_server.tracing.timeline import Timeline
from inference_server.worker.protocol import Progress


@dataclass(frozen=True, slots=True)
class Visit:
    """One request that was let in. `deadline_s` is on the door's clock, `timeout_s` after its arrival."""

    model: str  # as configured
    recorder: RequestRecorder
    place: Place
    deadline_s: float
    timeout_s: float


class Door:
    """Lets requests in and counts them. `announce_leaving` tells those who ask, and still lets in; after
    `shut_down` new ones are refused, and those inside go on.

    `clock` gives monotonic seconds and must be the manager's.
    """

    def __init__(
        self, manager: ModelManager, settings: Settings, metrics: Metrics, *, clock: Clock = time.monotonic
    ) -> None:
        self._manager = manager
        self._metrics = metrics
        self._clock = clock
        self._max_timeout_s = settings.request_timeout
        self._shutdown_timeout_s = settings.shutdown_timeout
        self._admission = Admission(
            QueueLimits(
                max_running=settings.max_num_seqs,
                max_queued=settings.max_num_queued_reqs,
                max_queued_total=settings.max_queued_total,
                max_queued_tokens=settings.max_queued_tokens,
                max_queued_tokens_total=settings.max_queued_tokens_total,
            )
        )
        self.draining = asyncio.Event()  # set when new requests are refused
        self._leaving_since_s: float | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def num_requests(self) -> int:
        """Sequences in progress, queued ones included."""
        return self._admission.num_requests

    def num_in_progress(self, model: str) -> int:
        """Sequences in progress on one model (its configured name), queued ones included."""
        return self._admission.num_in_progress(model)

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self.draining.is_set()

    @property
    def is_leaving(self) -> bool:
        """Whether new requests had better go to another server. A draining one is leaving."""
        return self._leaving_since_s is not None

    @property
    def shutdown_left_s(self) -> float:
        """Seconds until the server must have ended, below 0 after that; before it leaves, all it will get."""
        if self._leaving_since_s is None:
            return self._shutdown_timeout_s
        return self._leaving_since_s + self._shutdown_timeout_s - self._clock()

    def announce_leaving(self) -> None:
        """The server will stop soon; what comes before `shut_down` is still served."""
        if self._leaving_since_s is None:
            self._leaving_since_s = self._clock()

    def shut_down(self) -> None:
        """Refuse new requests from now on."""
        self.announce_leaving()
        self.draining.set()

    async def emptied(self, timeout_s: float) -> bool:
        """Wait until nobody is inside, at most this long; whether it came to that."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self._empty.is_set()

    def check_open(self) -> None:
        """Raises ShuttingDown: new work is refused."""
        if self.is_draining:
            raise ShuttingDown(
                "the server is shutting down; send the request to another one", retry_after_s=5
            )

    def status(self, model: str, caller: Caller | None = None) -> ModelStatus:
        """The model by name or alias.

        Raises:
            UnknownModel: there is none, or none that this caller may ask.
        """
        if caller is None or caller.key.models is None:
            return self._manager.status(model)
        with suppress(UnknownModel):
            status = self._manager.status(model)
            if caller.key.may_ask(status.name):
                return status
        # The same words for both, and no suggestion: it could name a model that the caller is not to see.
        raise UnknownModel(f"The model {shown(model)} does not exist", param="model")

    @asynccontextmanager
    async def admitted(
        self,
        model: str,
        num_places: int,
        timeout_s: float | None,
        caller: Caller | None = None,
        timeline: Timeline | None = None,
    ) -> AsyncIterator[Visit]:
        """Hold places on a model (its configured name) for the length of the block, and record how it ends.

        `timeout_s` counts from now and can only shorten the server's. `timeline` is written, if there is one.

        Raises:
            ShuttingDown, QueueFull: it is not taken now.
            RateLimited, QuotaExceeded: the caller has used up what it may.
        """
        recorder = RequestRecorder(self._metrics, model, self._clock, timeline)
        limit_s = min(timeout_s or self._max_timeout_s, self._max_timeout_s)
        try:
            self.check_open()
            asks = nullcontext() if caller is None else caller.admitted()
            tenant = "" if caller is None else caller.tenant
            with asks, self._inside(model, num_places, tenant) as place:
                recorder.when_decoding(place.release_tokens)
                yield Visit(model, recorder, place, self._clock() + limit_s, limit_s)
            self._admission.observe(recorder.elapsed_s)
            recorder.completed()
        except HelixFlowError as error:
            recorder.refused(error)
            raise
        except Exception:
            recorder.broken()
            raise
        except asyncio.CancelledError:
            recorder.cancelled()
            raise

    @asynccontextmanager
    async def leased(
        self,
        visit: Visit,
        *,
        keep_alive_s: float | None,
        on_progress: ProgressListener | None = None,
    ) -> AsyncIterator[Lease]:
        """The model, in memory for the length of the block, which the visit's deadline ends.

        Raises:
            ModelLoadFailed, InsufficientMemory: the model cannot be had.
            DeadlineExceeded: the time is up, in the queue or inside the block.
        """
        acquiring = self._manager.acquire(
            visit.model,
            deadline_s=visit.deadline_s,
            on_progress=_both(visit.recorder.loading, on_progress),
            keep_alive_s=keep_alive_s,
        )
        async with acquiring as lease, self.in_time(visit):
            visit.recorder.loaded()
            yield lease

    def in_time(self, visit: Visit) -> AbstractAsyncContextManager[None]:
        """A block that the visit's deadline ends. Raises DeadlineExceeded."""
        return deadline(visit.deadline_s - self._clock(), visit.timeout_s)

    @contextmanager
    def _inside(self, model: str, num_places: int, tenant: str) -> Iterator[Place]:
        try:
            with self._admission.admitted(model, num_places, tenant) as place:
                self._empty.clear()
                yield place
        finally:
            if not self.num_requests:
                self._empty.set()


def _both(first: ProgressListener, second: ProgressListener | None) -> ProgressListener:
    if second is None:
        return first

    def tell(progress: Progress) -> None:
        first(progress)
        second(progress)

    return tell
