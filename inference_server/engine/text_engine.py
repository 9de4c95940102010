"""The engine of one text model: requests in, one step at a time, deltas out.

Owner: the worker's main thread. Knows the order schedule → run → commit and what to do when a step fails;
it knows neither tensors (the runner does) nor processes (the worker does).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from inference_server.errors import InvalidRequest
from inference_server.scheduling.batch import INVALID_TOKEN, Batch
from inference_server.scheduling.scheduler import Scheduler
from inference_server.types import EngineStats, GenerationRequest, MemoryReport, TokenDelta

logger = logging.getLogger(__name__)


class StepRunner(Protocol):
    """Computes one step."""

    def execute(self, batch: Batch) -> Seq[int]:
        """The next token of each sequence in `batch.sampling`, in that order.

        `INVALID_TOKEN` marks a sequence whose logits are not finite. Raises whatever the forward pass
        raises; the engine fails the requests of the batch and goes on.
        """

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device is unusable after `error`, so that the process must end."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself once it is built."""

    memory: MemoryReport
    dtype: str
    kv_cache_tokens: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """One request that a step could not serve."""

    request_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step gave. `fatal` says why the process must end, if it must."""

    deltas: tuple[TokenDelta, ...]
    failures: tuple[RequestFailure, ...]
    stats: EngineStats
    fatal: str | None = None


class TextEngine:
    """Continuous batching over one scheduler and one runner."""

    def __init__(self, scheduler: Scheduler, runner: StepRunner, vocab_size: int) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._scheduler.has_unfinished

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            ContextTooLong, InvalidRequest: it can never run on this engine.
        """
        if max(request.prompt_token_ids, default=0) >= self._vocab_size:
            raise InvalidRequest(
                f"the prompt has token ids beyond the vocabulary of {self._vocab_size}", param="prompt"
            )
        self._scheduler.add(request)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False if it is unknown or finished."""
        return self._scheduler.abort(request_id)

    def step(self) -> StepOutcome:
        """One forward pass over everything that is scheduled."""
        started_s = time.perf_counter()
        batch = self._scheduler.schedule()
        try:
            sampled = self._runner.execute(batch)
        except Exception as error:
            return self._fail_batch(batch, error)
        failures = self._drop_invalid(batch, sampled)
        deltas = self._scheduler.commit(batch, sampled)
        stats = self._stats(batch, time.perf_counter() - started_s)
        return StepOutcome(deltas=tuple(deltas), failures=failures, stats=stats)

    def step_stats(self) -> EngineStats:
        """The counters as they stand, with no step measured."""
        return self._stats(Batch(scheduled=(), preempted=()), 0.0)

    def check_integrity(self) -> None:
        """For tests: see `Scheduler.check_integrity`."""
        self._scheduler.check_integrity()

    def _drop_invalid(self, batch: Batch, sampled: Seq[int]) -> tuple[RequestFailure, ...]:
        failures = []
        for scheduled, token in zip(batch.sampling, sampled, strict=True):
            if token == INVALID_TOKEN:
                request_id = scheduled.sequence.request_id
                self._scheduler.abort(request_id)
                text = "the model produced logits that are not finite numbers for this request"
                failures.append(RequestFailure(request_id, "internal_error", text))
        return tuple(failures)

    def _fail_batch(self, batch: Batch, error: Exception) -> StepOutcome:
        """Every request of the batch fails; nothing else is touched."""
        logger.error("a step of %d sequences failed", batch.num_seqs, exc_info=error)
        message = (
            f"the model's forward pass failed ({type(error).__name__}); the server's log has the details"
        )
        failures = []
        for scheduled in batch.scheduled:
            request_id = scheduled.sequence.request_id
            self._scheduler.abort(request_id)
            failures.append(RequestFailure(request_id, "internal_error", message))
        fatal = f"the device failed: {type(error).__name__}" if self._runner.is_fatal(error) else None
        return StepOutcome(deltas=(), failures=tuple(failures), stats=self._stats(batch, 0.0), fatal=fatal)

    def _stats(self, batch: Batch, step_seconds: float) -> EngineStats:
        now = self._scheduler.stats()
        return EngineStats(
            num_running=now.num_running,
            num_waiting=now.num_waiting,
            kv_cache_usage=now.kv_cache_usage,
            num_preemptions=now.num_preemptions,
            prefix_cache_queries=now.prefix_cache_queries,
            prefix_cache_hits=now.prefix_cache_hits,
            step_num_tokens=batch.num_tokens,
            step_num_seqs=batch.num_seqs,
            step_seconds=step_seconds,
        )
