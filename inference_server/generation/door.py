"""What every kind of request passes: is the server leaving, is there a place, whose clock ends it, and what
is said of it afterwards.

Knows models by name and no prompts; `service.py` (text) and `embeddings.py` run what is let in. Owner: the
event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

from inference_server.access.gate import Caller
from inference_server.config.kinds import shown
from inference_server.config.settings import Settings
from inference_server.errors import HelixFlowError, ShuttingDown, UnknownModel
from inference_server.generation.admission import Admission
from inference_server.generation.deadline import deadline
from inference_server.generation.recorder import Clock, RequestRecorder
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.record import ProgressListener
from inference_server.model_manager.status import ModelStatus
from inference_server.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Visit:
    """One request that was let in. `deadline_s` is on the door's clock, `timeout_s` after its arrival."""

    model: str  # as configured
    recorder: RequestRecorder
    deadline_s: float
    timeout_s: float


class Door:
    """Lets requests in and counts them. After `shut_down` new ones are refused; those inside go on.

    `clock` gives monotonic seconds and must be the manager's.
    """

    def __init__(
        self, manager: ModelManager, settings: Settings, metrics: Metrics, *, clock: Clock = time.monotonic
    ) -> None:
        self._manager = manager
        self._metrics = metrics
        self._clock = clock
        self._max_timeout_s = settings.request_timeout
        self._admission = Admission(
            max_running=settings.max_num_seqs,
            max_queued=settings.max_num_queued_reqs,
            max_queued_total=settings.max_queued_total,
        )
        self.draining = asyncio.Event()  # set when new requests are refused

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

    def shut_down(self) -> None:
        """Refuse new requests from now on."""
        self.draining.set()

    def status(self, model: str, caller: Caller | None = None) -> ModelStatus:
        """The model by name or alias.

        Raises:
            UnknownModel: there is none, or none that this caller may ask.
        """
        status = self._manager.status(model)
        if caller is not None and not caller.key.may_ask(status.name):
            raise UnknownModel(f"The model {shown(model)} is none that this key may ask", param="model")
        return status

    @asynccontextmanager
    async def admitted(
        self, model: str, num_places: int, timeout_s: float | None, caller: Caller | None = None
    ) -> AsyncIterator[Visit]:
        """Hold places on a model (its configured name) for the length of the block, and record how it ends.

        `timeout_s` counts from now and can only shorten the server's.

        Raises:
            ShuttingDown, QueueFull: it is not taken now.
            RateLimited, QuotaExceeded: the caller has used up what it may.
        """
        recorder = RequestRecorder(self._metrics, model, self._clock)
        limit_s = min(timeout_s or self._max_timeout_s, self._max_timeout_s)
        try:
            self._refuse_if_draining()
            asks = nullcontext() if caller is None else caller.admitted()
            with asks, self._admission.admitted(model, num_places):
                yield Visit(model, recorder, self._clock() + limit_s, limit_s)
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
            visit.model, deadline_s=visit.deadline_s, on_progress=on_progress, keep_alive_s=keep_alive_s
        )
        async with acquiring as lease, deadline(visit.deadline_s - self._clock(), visit.timeout_s):
            yield lease

    def _refuse_if_draining(self) -> None:
        if self.is_draining:
            raise ShuttingDown(
                "the server is shutting down; send the request to another one", retry_after_s=5
            )
