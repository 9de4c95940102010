"""The engine of one text model: requests in, one step at a time, deltas out.

Owner: the worker's main thread. Knows the order schedule → launch → commit, how many steps may be in flight
and what to do when one fails; it knows neither tensors (the runner does) nor processes (the worker does).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from inference_server.engine.compilations import Compilations, GrammarCompiler
from inference_server.engine.contract import Sleeper, Sleepless, StepRunner
from inference_server.engine.memory_errors import is_out_of_memory
from inference_server.engine.scoring import with_scores
from inference_server.errors import (
    HelixFlowError,
    InsufficientMemory,
    InternalError,
    InvalidRequest,
    SleepUnsupported,
)
from inference_server.scheduling.batch import INVALID_TOKEN, Batch
from inference_server.scheduling.pending import FailedStep, PendingStep
from inference_server.scheduling.scheduler import Scheduler
from inference_server.scheduling.sequence import Sequence
from inference_server.types import (
    EmbeddingRequest,
    EmbeddingVector,
    EngineStats,
    GenerationRequest,
    MemoryReport,
    TokenDelta,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself once it is built."""

    memory: MemoryReport
    dtype: str
    kv_cache_tokens: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """One request that a step could not serve. `param`: the field at fault, if one is."""

    request_id: str
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step gave. `fatal` says why the process must end, if it must."""

    stats: EngineStats
    deltas: tuple[TokenDelta, ...] = ()
    vectors: tuple[EmbeddingVector, ...] = ()
    failures: tuple[RequestFailure, ...] = ()
    fatal: str | None = None


Mark = Callable[[str], AbstractContextManager[object]]
_NO_MARK = nullcontext()


def no_mark(name: str) -> AbstractContextManager[object]:
    """The mark of an engine that nobody profiles."""
    return _NO_MARK


class Engine(Protocol):
    """What the worker's loop asks of any engine, of text or of embeddings.

    `mark` gives the context in which each part of a step runs, so that a profile can name it.
    """

    mark: Mark

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""

    def submit(self, request: GenerationRequest | EmbeddingRequest) -> None:
        """Queue a request. Raises ContextTooLong, InvalidRequest if it can never run on this engine."""

    def abort(self, request_id: str) -> bool:
        """Forget a request; False if it is unknown or finished."""

    def step(self) -> StepOutcome:
        """Compute one step and give its results."""

    def step_stats(self) -> EngineStats:
        """The counters as they stand, with no step measured."""

    @property
    def why_not_sleep(self) -> str:
        """In words why the engine can never sleep; empty if it can."""

    def sleep(self) -> MemoryReport:
        """Give memory back; what is left is returned. Raises SleepUnsupported if it cannot now, or never."""

    def wake(self) -> MemoryReport:
        """Take requests again; what is held now is returned. Raises SleepUnsupported."""


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step in flight."""

    batch: Batch
    pending: PendingStep
    launched_s: float


class TextEngine:
    """Continuous batching over one scheduler and one runner."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        vocab_size: int,
        *,
        sleeper: Sleeper | Sleepless = Sleepless("its weights are held nowhere else"),  # noqa: B008 - frozen
        grammars: GrammarCompiler | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` gives seconds that only go up."""
        self.mark: Mark = no_mark
        self._sleeper = sleeper
        self._compiling = Compilations(grammars)
        self._is_asleep = False
        self._clock = clock
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size
        self._in_flight: deque[_Launched] = deque()  # oldest first
        self._collected_s = 0.0  # when the last step's results came

    @property
    def runner(self) -> StepRunner:
        """What computes the steps."""
        return self._runner

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._vocab_size

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._in_flight) or self._scheduler.has_unfinished or bool(self._compiling)

    @property
    def why_not_sleep(self) -> str:
        """In words why the engine can never sleep; empty if it can."""
        return self._sleeper.reason if isinstance(self._sleeper, Sleepless) else ""

    @property
    def is_asleep(self) -> bool:
        """Whether it has given its memory back."""
        return self._is_asleep

    def sleep(self) -> MemoryReport:
        """Give the memory of weights and KV cache back; what is left is returned.

        Raises:
            SleepUnsupported: it never can, or requests are unfinished.
        """
        if isinstance(self._sleeper, Sleepless):
            raise SleepUnsupported(f"this model cannot sleep: {self._sleeper.reason}")
        if self._scheduler.has_unfinished or self._compiling:
            raise SleepUnsupported("the model cannot sleep while requests run")
        while self._in_flight:  # of requests that were aborted
            self.step()
        if not self._is_asleep:
            self._scheduler.forget_cached_blocks()
            self._sleeper.sleep()
            self._is_asleep = True
        return self._sleeper.memory()

    def wake(self) -> MemoryReport:
        """Take requests again; what is held now is returned.

        Raises:
            SleepUnsupported: it never slept, because it cannot.
            Exception: of the memory that it needs; it sleeps on.
        """
        if isinstance(self._sleeper, Sleepless):
            raise SleepUnsupported(f"this model cannot sleep: {self._sleeper.reason}")
        if self._is_asleep:
            self._sleeper.wake()
            self._is_asleep = False
        return self._sleeper.memory()

    def submit(self, request: GenerationRequest | EmbeddingRequest) -> None:
        """Queue a request.

        Raises:
            ContextTooLong, InvalidRequest: it can never run on this engine.
            InternalError: the engine is asleep.
        """
        if self._is_asleep:
            raise InternalError("the model was asleep when this request came; this is a bug of the server")
        if not isinstance(request, GenerationRequest):
            raise InvalidRequest("this model generates text and makes no embeddings", param="model")
        if max(request.prompt_token_ids, default=0) >= self._vocab_size:
            raise InvalidRequest(
                f"the prompt has token ids beyond the vocabulary of {self._vocab_size}", param="prompt"
            )
        if request.sampling.grammar is None:
            self._scheduler.add(request)
        else:
            self._compiling.begin(request, request.sampling.grammar)

    def abort(self, request_id: str) -> bool:
        """Forget a request; False if it is unknown or finished. See `Scheduler.abort`."""
        return self._compiling.forget(request_id) or self._scheduler.abort(request_id)

    def step(self) -> StepOutcome:
        """Launch as much as may be in flight, then take the results of the oldest step.

        Where all that is left to do is done by the grammars' compiler, wait for it a little.
        """
        if not self._compiling:
            return self._step()
        refused = self._take_compiled()
        outcome = self._step()
        return dataclasses.replace(outcome, failures=(*refused, *outcome.failures))

    def _take_compiled(self) -> tuple[RequestFailure, ...]:
        """Queue the requests whose grammars are ready; those that are refused are returned."""
        refused = []
        is_idle = not self._in_flight and not self._scheduler.has_unfinished
        for request, compiled in self._compiling.take(waits=is_idle):
            try:
                self._scheduler.add(request, compiled.result())
            except HelixFlowError as error:
                refused.append(RequestFailure(request.request_id, error.code, error.message, error.param))
            except Exception:
                logger.exception("a grammar's compilation broke")
                text = "the grammar's compiler failed; the server's log has the details"
                refused.append(RequestFailure(request.request_id, InternalError.code, text))
        return tuple(refused)

    def _step(self) -> StepOutcome:
        while len(self._in_flight) < self._runner.max_in_flight and self._launch():
            pass
        if not self._in_flight:
            return StepOutcome(stats=self.step_stats())
        step = self._in_flight.popleft()
        try:
            with self.mark("results"):
                sampled = step.pending.tokens()
        except Exception as error:
            return self._fail(step.batch, error)
        seconds = self._duration(step)
        with self.mark("commit"):
            failures = self._drop_invalid(step.batch, sampled)
            deltas = self._scheduler.commit(step.batch, sampled)
        scores = step.pending.scores()
        if scores is not None:
            deltas = with_scores(deltas, scores)
        self._scheduler.observe(step.batch, seconds)
        return StepOutcome(self._stats(step.batch, seconds), deltas=tuple(deltas), failures=failures)

    def step_stats(self) -> EngineStats:
        """The counters as they stand, with no step measured."""
        return self._stats(Batch(scheduled=(), preempted=()), 0.0)

    def check_integrity(self) -> None:
        """For tests: see `Scheduler.check_integrity`."""
        self._scheduler.check_integrity()

    def _launch(self) -> bool:
        """Schedule and launch one step; False if there is none, or no use in one more."""
        if self._in_flight and isinstance(self._in_flight[-1].pending, FailedStep):
            return False  # what would be scheduled now is about to fail
        with self.mark("schedule"):
            batch = self._scheduler.schedule()
        if not batch.scheduled:
            return False
        now_s = self._clock()
        pending: PendingStep
        try:
            with self.mark("launch"):
                pending = self._runner.launch(batch)
        except Exception as error:
            pending = FailedStep(error)
        self._in_flight.append(_Launched(batch, pending, now_s))
        return True

    def _duration(self, step: _Launched) -> float:
        """Seconds that the step took, without the wait for the one before it."""
        now_s = self._clock()
        started_s = max(step.launched_s, self._collected_s)
        self._collected_s = now_s
        return now_s - started_s

    def _drop_invalid(self, batch: Batch, sampled: Seq[Seq[int]]) -> tuple[RequestFailure, ...]:
        failures = []
        for scheduled, tokens in zip(batch.sampling, sampled, strict=True):
            if INVALID_TOKEN in tokens and scheduled.sequence.finish_reason is None:
                request_id = scheduled.sequence.request_id
                self._scheduler.abort(request_id)
                failures.append(_invalid(scheduled.sequence))
        return tuple(failures)

    def _fail(self, batch: Batch, error: Exception) -> StepOutcome:
        """Every request of the batch fails; nothing else is touched."""
        logger.error("a step of %d sequences failed", batch.num_seqs, exc_info=error)
        code, message = _told(error)
        failures = [RequestFailure(request_id, code, message) for request_id in self._scheduler.fail(batch)]
        fatal = f"the device failed: {type(error).__name__}" if self._runner.is_fatal(error) else None
        return StepOutcome(self._stats(batch, 0.0), failures=tuple(failures), fatal=fatal)

    def _stats(self, batch: Batch, step_seconds: float) -> EngineStats:
        now = self._scheduler.stats()
        return EngineStats(
            num_running=now.num_running,
            num_waiting=now.num_waiting,
            kv_cache_usage=now.kv_cache_usage,
            num_preemptions=now.num_preemptions,
            prefix_cache_queries=now.prefix_cache_queries,
            prefix_cache_hits=now.prefix_cache_hits,
            num_draft_tokens=now.num_draft_tokens,
            num_accepted_tokens=now.num_accepted_tokens,
            step_num_tokens=batch.num_tokens,
            step_num_seqs=batch.num_seqs,
            step_seconds=step_seconds,
        )


def _invalid(sequence: Sequence) -> RequestFailure:
    """Why no token could be chosen."""
    constraint = sequence.constraint
    if constraint is not None and constraint.error is not None:
        return RequestFailure(sequence.request_id, InvalidRequest.code, constraint.error)
    text = "the model produced logits that are not finite numbers for this request"
    return RequestFailure(sequence.request_id, InternalError.code, text)


def _told(error: Exception) -> tuple[str, str]:
    """Code and message for the requests of a step that raised `error`; its text may hold prompts or paths."""
    if is_out_of_memory(error):
        return InsufficientMemory.code, (
            "the model ran out of memory while it computed this request; send it again, or make it shorter"
        )
    name = type(error).__name__
    return InternalError.code, f"the model's forward pass failed ({name}); the server's log has the details"
