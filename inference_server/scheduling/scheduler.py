"""Continuous batching: who computes how many tokens in the next step, and what becomes of the results.

Owner of all sequences and of the block pool; used by the engine's thread only. It knows no tensors, no clock
and no text. There is no prefill and no decode phase: every sequence's `num_computed_tokens` runs after its
`num_tokens`, and each step hands out a token budget.

- Running sequences come first, in rank order (priority, then arrival). Each gets at least one token per step.
- Then waiting ones are admitted strictly in rank order, so that a large one is never overtaken for good.
- An admission takes blocks for *all* tokens that the sequence has, and leaves one free block for each running
  sequence. With less, a long prompt would be thrown out half computed, and admitted again, and so on.
- When a running sequence needs a block and none is free, the last in rank is preempted: it gives up its
  blocks, waits at its old rank, and is computed again. The first in rank therefore always advances; as `add`
  refuses whatever could not finish alone in the whole pool, everything admitted comes to its end.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import msgspec

from inference_server.errors import ContextTooLong, InternalError, InvalidRequest
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.block_pool import BlockPool
from inference_server.scheduling.integrity import check_scheduler
from inference_server.scheduling.prefix_cache import MAX_TOKEN_ID, PrefixCache
from inference_server.scheduling.ranking import RankedSequences
from inference_server.scheduling.sequence import Sequence, SequenceStatus
from inference_server.types import FinishReason, GenerationRequest, TokenDelta


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Caps of one scheduler. `num_blocks` blocks of `block_size` tokens are the whole KV cache.

    `vocab_size` lets `add` refuse token ids that the model does not have: one of them in a batch would fail
    the step for all.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True
    eos_token_ids: frozenset[int] = frozenset()
    vocab_size: int = MAX_TOKEN_ID + 1

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


class SchedulerStats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's state; the last three are totals. `kv_cache_usage` is the share of blocks that are held."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    num_preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int


class Scheduler:
    """`schedule` → (the runner computes) → `commit`; `add` and `abort` at any time in between."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._block_size = config.block_size
        self._pool = BlockPool(config.num_blocks)
        self._cache = PrefixCache(
            self._pool, block_size=config.block_size, enabled=config.enable_prefix_caching
        )
        self._sequences: dict[str, Sequence] = {}  # all unfinished ones
        self._running = RankedSequences()
        self._waiting = RankedSequences()
        self._in_flight: Batch | None = None  # scheduled and not committed
        self._num_arrivals = 0
        self._num_preemptions = 0

    # ---------------------------------------------------------------- requests

    def add(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            ContextTooLong: its prompt leaves no room for output, or it could outgrow the whole KV cache.
            InvalidRequest: the prompt is empty or has unknown token ids, `max_tokens` is not positive, or
                the id is in use.
        """
        self._refuse_malformed(request)
        num_prompt_tokens = len(request.prompt_token_ids)
        if num_prompt_tokens >= self._config.max_model_len:
            raise ContextTooLong(
                f"the prompt has {num_prompt_tokens} tokens; this model takes "
                f"{self._config.max_model_len} tokens, prompt and output together"
            )
        max_num_tokens = min(num_prompt_tokens + request.sampling.max_tokens, self._config.max_model_len)
        capacity = self._config.num_blocks * self._block_size
        if max_num_tokens - 1 > capacity:  # the last token is returned, never computed
            raise ContextTooLong(
                f"prompt and max_tokens may reach {max_num_tokens} tokens; "
                f"this model's KV cache holds {capacity}"
            )
        sequence = Sequence(request, arrival=self._num_arrivals, max_num_tokens=max_num_tokens)
        self._num_arrivals += 1
        self._sequences[request.request_id] = sequence
        self._waiting.add(sequence)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks at once; False if it is unknown or finished.

        Safe between `schedule` and `commit`: its blocks are not handed out before the next `schedule`, and
        `commit` passes over it.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._finish(sequence, FinishReason.ABORT)
        return True

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._sequences)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for their first step, or for their next after a preemption."""
        return len(self._waiting)

    def stats(self) -> SchedulerStats:
        """Counters as they stand."""
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_cache_usage=1.0 - self._pool.num_free / self._pool.num_blocks,
            num_preemptions=self._num_preemptions,
            prefix_cache_queries=self._cache.num_queries,
            prefix_cache_hits=self._cache.num_hits,
        )

    def check_integrity(self) -> None:
        """For tests, between any two calls.

        Raises:
            InternalError: a block or a sequence is lost, shared wrongly or miscounted.
        """
        check_scheduler(
            self._config,
            self._pool,
            sequences=self._sequences,
            running=self._running,
            waiting=self._waiting,
        )

    # ---------------------------------------------------------------- schedule

    def schedule(self) -> Batch:
        """The next step's batch; not empty while any request is unfinished.

        A batch that is never committed (its step failed) is simply scheduled again.
        """
        scheduled: list[ScheduledSequence] = []
        preempted: list[str] = []
        budget = self._schedule_running(scheduled, preempted)
        if not preempted:
            self._schedule_waiting(scheduled, budget)
        self._in_flight = Batch(scheduled=tuple(scheduled), preempted=tuple(preempted))
        return self._in_flight

    def _schedule_running(self, scheduled: list[ScheduledSequence], preempted: list[str]) -> int:
        """Give every running sequence tokens, in rank order; returns what is left of the budget.

        There is one for each: a sequence is admitted only into budget that all earlier ones leave over.
        """
        budget = self._config.max_num_batched_tokens
        running = self._running
        index = 0
        while index < len(running):
            sequence = running[index]
            num_tokens = len(sequence.token_ids)
            is_short = num_tokens > len(sequence.block_ids) * self._block_size
            if is_short and not self._grow(sequence, preempted):
                break  # it was the last in rank and preempted itself
            index += 1
            start = sequence.num_computed_tokens
            num_new_tokens = min(num_tokens - start, budget - (len(running) - index))
            budget -= num_new_tokens
            samples = start + num_new_tokens == num_tokens
            scheduled.append(ScheduledSequence(sequence, start, num_new_tokens, samples))
        return budget

    def _schedule_waiting(self, scheduled: list[ScheduledSequence], budget: int) -> None:
        """Admit the first in rank for as long as slots, blocks and budget last."""
        while self._waiting and budget > 0 and len(self._running) < self._config.max_num_seqs:
            sequence = self._waiting[0]
            if not self._admit(sequence):
                break
            start = sequence.num_computed_tokens
            num_new_tokens = min(sequence.num_tokens - start, budget)
            budget -= num_new_tokens
            samples = start + num_new_tokens == sequence.num_tokens
            scheduled.append(ScheduledSequence(sequence, start, num_new_tokens, samples))

    def _admit(self, sequence: Sequence) -> bool:
        """Start a sequence, with what the cache has of it, if blocks for it and the headroom are free."""
        cached = self._cache.match(sequence)
        num_new_blocks = -(-sequence.num_tokens // self._block_size) - len(cached)
        num_needed = num_new_blocks + self._pool.num_free_among(cached)
        if num_needed + len(self._running) > self._pool.num_free:
            return False
        is_first = not sequence.was_admitted
        self._pool.share(cached)
        blocks = cached + self._pool.allocate(num_new_blocks)
        self._waiting.remove(sequence)
        sequence.admit(blocks, num_cached_blocks=len(cached), block_size=self._block_size)
        self._running.add(sequence)
        if is_first:
            self._cache.count(sequence)
        return True

    def _grow(self, sequence: Sequence, preempted: list[str]) -> bool:
        """Add the block for its newest token; False if the sequence itself had to go for want of one."""
        while self._pool.num_free == 0:
            victim = self._running[-1]
            self._preempt(victim)
            preempted.append(victim.request_id)
            if victim is sequence:
                return False
        sequence.block_ids += self._pool.allocate(1)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._pool.free(sequence.preempt())
        self._waiting.add(sequence)
        self._num_preemptions += 1

    # ---------------------------------------------------------------- commit

    def commit(self, batch: Batch, sampled: Seq[int]) -> list[TokenDelta]:
        """Take a computed step's results; `sampled[i]` belongs to `batch.sampling[i]`.

        Sequences aborted since `schedule` are passed over. Finished ones leave, and their blocks are free.

        Raises:
            InternalError: the batch is not the one last scheduled, or the tokens do not fit it.
        """
        if batch is not self._in_flight:
            raise InternalError("only the batch scheduled last can be committed, and only once")
        tokens = iter(sampled)
        if len(sampled) != sum([item.samples for item in batch.scheduled]):
            raise InternalError(f"{len(sampled)} tokens for {len(batch.sampling)} sequences")
        self._in_flight = None
        deltas: list[TokenDelta] = []
        for item in batch.scheduled:
            token_id = next(tokens) if item.samples else None
            sequence = item.sequence
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            num_computed_tokens = item.start + item.num_new_tokens
            sequence.num_computed_tokens = num_computed_tokens
            if num_computed_tokens // self._block_size > sequence.num_published_blocks:
                self._cache.publish(sequence)
            if token_id is not None:
                deltas.append(self._extend(sequence, token_id))
        return deltas

    def _extend(self, sequence: Sequence, token_id: int) -> TokenDelta:
        """Append a sampled token, and finish if it is the last."""
        is_first = not sequence.output_token_ids
        sequence.append(token_id)
        reason = self._finish_reason(sequence, token_id)
        if reason is not None:
            self._finish(sequence, reason)
        return TokenDelta(
            request_id=sequence.request_id,
            token_ids=(token_id,),
            finish_reason=reason,
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
        )

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.sampling
        if token_id in self._config.eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        if token_id in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(sequence.token_ids) >= sequence.max_num_tokens else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        del self._sequences[sequence.request_id]
        (self._running if sequence.status is SequenceStatus.RUNNING else self._waiting).remove(sequence)
        self._pool.free(sequence.finish(reason))

    def _refuse_malformed(self, request: GenerationRequest) -> None:
        if request.request_id in self._sequences:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", param="request_id")
        if not request.prompt_token_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if request.sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        vocab_size = self._config.vocab_size
        if min(request.prompt_token_ids) < 0 or max(request.prompt_token_ids) >= vocab_size:
            raise InvalidRequest(f"the prompt has token ids outside 0…{vocab_size - 1}", param="prompt")
