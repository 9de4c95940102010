"""The engine of one embedding model: requests in, one batch of inputs per step, vectors out.

Owner: the worker's main thread. Knows the order take → embed → deliver and what to do when a step fails; it
knows neither tensors (the embedder does) nor processes (the worker does).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Protocol

from inference_server.engine.text_engine import Mark, RequestFailure, StepOutcome, no_mark
from inference_server.errors import InvalidRequest, SleepUnsupported
from inference_server.scheduling.embedding import WaitingInput
from inference_server.scheduling.embedding_queue import EmbeddingQueue
from inference_server.types import (
    EmbeddingRequest,
    EmbeddingVector,
    EngineStats,
    GenerationRequest,
    MemoryReport,
)

WHY_NOT_SLEEP = "embedding models are small, and are loaded anew instead"
logger = logging.getLogger(__name__)


class BatchEmbedder(Protocol):
    """Computes one batch."""

    def embed(self, inputs: Seq[Seq[int]], dimensions: Seq[int | None]) -> Seq[bytes | None]:
        """Little-endian float32 numbers per input, cut to `dimensions`; None where they are not finite."""

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device is unusable after `error`, so that the process must end."""


class EmbeddingEngine:
    """One-shot batches over a queue and an embedder."""

    def __init__(
        self,
        queue: EmbeddingQueue,
        embedder: BatchEmbedder,
        *,
        vocab_size: int,
        num_dimensions: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` gives seconds that only go up."""
        self.mark: Mark = no_mark
        self._queue = queue
        self._embedder = embedder
        self._vocab_size = vocab_size
        self._num_dimensions = num_dimensions
        self._clock = clock

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._queue)

    def submit(self, request: GenerationRequest | EmbeddingRequest) -> None:
        """Queue a request.

        Raises:
            ContextTooLong, InvalidRequest: it can never run on this engine.
        """
        if not isinstance(request, EmbeddingRequest):
            raise InvalidRequest("this model makes embeddings and generates no text", param="model")
        if max((max(one, default=0) for one in request.inputs), default=0) >= self._vocab_size:
            raise InvalidRequest(
                f"the input has token ids beyond the vocabulary of {self._vocab_size}", param="input"
            )
        if request.dimensions is not None and not 1 <= request.dimensions <= self._num_dimensions:
            raise InvalidRequest(
                f"dimensions must be between 1 and the model's {self._num_dimensions}", param="dimensions"
            )
        self._queue.add(request)

    def abort(self, request_id: str) -> bool:
        """Forget a request; False if it is unknown or finished."""
        return self._queue.abort(request_id)

    def step(self) -> StepOutcome:
        """Embed the next batch of inputs."""
        batch = self._queue.take()
        if not batch:
            return StepOutcome(stats=self.step_stats())
        started_s = self._clock()
        try:
            with self.mark("embed"):
                vectors = self._embedder.embed(
                    [one.token_ids for one in batch], [one.request.dimensions for one in batch]
                )
        except Exception as error:
            return self._fail(batch, error)
        stats = self._stats(batch, self._clock() - started_s)
        failures = self._drop_invalid(batch, vectors)
        return StepOutcome(vectors=_delivered(batch, vectors), failures=failures, stats=stats)

    def step_stats(self) -> EngineStats:
        """The counters as they stand, with no step measured."""
        return self._stats((), 0.0)

    @property
    def why_not_sleep(self) -> str:
        """See `Engine.why_not_sleep`."""
        return WHY_NOT_SLEEP

    def sleep(self) -> MemoryReport:
        """See `Engine.sleep`."""
        raise SleepUnsupported(f"this model cannot sleep: {WHY_NOT_SLEEP}")

    def wake(self) -> MemoryReport:
        """See `Engine.wake`."""
        raise SleepUnsupported(f"this model cannot sleep: {WHY_NOT_SLEEP}")

    def _drop_invalid(
        self, batch: Seq[WaitingInput], vectors: Seq[bytes | None]
    ) -> tuple[RequestFailure, ...]:
        bad = (one for one, vector in zip(batch, vectors, strict=True) if vector is None)
        return self._give_up(bad, "the model produced numbers that are not finite for this request")

    def _fail(self, batch: Seq[WaitingInput], error: Exception) -> StepOutcome:
        """Every request of the batch fails; nothing else is touched."""
        logger.error("a step of %d inputs failed", len(batch), exc_info=error)
        message = (
            f"the model's forward pass failed ({type(error).__name__}); the server's log has the details"
        )
        fatal = f"the device failed: {type(error).__name__}" if self._embedder.is_fatal(error) else None
        return StepOutcome(failures=self._give_up(batch, message), stats=self.step_stats(), fatal=fatal)

    def _give_up(self, inputs: Iterable[WaitingInput], message: str) -> tuple[RequestFailure, ...]:
        """Fail the requests of these inputs, with whatever else waits of them."""
        request_ids = dict.fromkeys(one.request.request_id for one in inputs)
        for request_id in request_ids:
            self._queue.abort(request_id)
        return tuple(RequestFailure(request_id, "internal_error", message) for request_id in request_ids)

    def _stats(self, batch: Seq[WaitingInput], step_seconds: float) -> EngineStats:
        return EngineStats(
            num_waiting=self._queue.num_waiting,
            step_num_tokens=sum(one.num_tokens for one in batch),
            step_num_seqs=len(batch),
            step_seconds=step_seconds,
        )


def _delivered(batch: Seq[WaitingInput], vectors: Seq[bytes | None]) -> tuple[EmbeddingVector, ...]:
    return tuple(
        EmbeddingVector(request_id=one.request.request_id, index=one.index, values=vector)
        for one, vector in zip(batch, vectors, strict=True)
        if vector is not None
    )
