"""Hands out each step's token budget, so that every sequence catches up with its own tokens.

There is no prefill and no decode phase: a sequence has `num_computed_tokens` behind `num_tokens`, and that
one rule gives continuous batching, chunked prefill, prefix-cache hits and preemption. Owner of all
sequences and of the block pool; used by one thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import msgspec

from inference_server.errors import ContextTooLong, InternalError, InvalidRequest
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.block_pool import BlockPool
from inference_server.scheduling.prefix_cache import block_hash, first_parent
from inference_server.scheduling.sequence import Sequence, SequenceStatus
from inference_server.types import FinishReason, GenerationRequest, TokenDelta


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one engine. Lengths are in tokens."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True
    eos_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """The scheduler's state; the counters are totals."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    num_preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int


class Scheduler:
    """`schedule` → (run) → `commit`, with `add` and `abort` at any time between."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._pool = BlockPool(config.num_blocks)
        self._sequences: dict[str, Sequence] = {}
        self._running: list[Sequence] = []
        self._waiting: list[tuple[int, int, Sequence]] = []  # heap by (priority, arrival)
        self._num_waiting = 0
        self._num_arrivals = 0
        self._num_preemptions = 0
        self._prefix_queries = 0
        self._prefix_hits = 0

    # ------------------------------------------------------------ arrivals and departures

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._sequences)

    def add(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: the prompt is empty, or the id is in use.
            ContextTooLong: it cannot fit in the context, or in the whole KV cache.
        """
        num_prompt = len(request.prompt_token_ids)
        limit = self._config.max_model_len
        if num_prompt == 0:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if request.request_id in self._sequences:
            raise InvalidRequest(f"the request id {request.request_id!r} is already in use")
        if num_prompt >= limit:
            raise ContextTooLong(
                f"the prompt has {num_prompt} tokens; the model's context of {limit} tokens leaves no room "
                "for an answer"
            )
        longest = min(num_prompt + request.sampling.max_tokens, limit) - 1  # the last token is never computed
        if self._blocks_for(longest) > self._pool.num_blocks:
            raise ContextTooLong(
                f"the request may need {longest} tokens of KV cache; this model reserves "
                f"{self._pool.num_blocks * self._config.block_size} (setting kv_cache)"
            )
        sequence = Sequence(request, self._num_arrivals)
        self._num_arrivals += 1
        self._sequences[request.request_id] = sequence
        self._enqueue(sequence)

    def abort(self, request_id: str) -> bool:
        """Forget a sequence and free its blocks; False if there is none of that id."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._finish(sequence, FinishReason.ABORT)
        return True

    # ------------------------------------------------------------ the step

    def schedule(self) -> Batch:
        """Choose what the next step computes. Running sequences come first, those that decode before others."""
        budget = self._config.max_num_batched_tokens
        scheduled: dict[str, ScheduledSequence] = {}
        preempted: list[str] = []
        for sequence in sorted(self._running, key=_decodes_first):
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted a moment ago
            count = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            if count and self._make_room(sequence, count, scheduled, preempted):
                scheduled[sequence.request_id] = self._item(sequence, count)
            budget = self._config.max_num_batched_tokens - sum(s.num_new_tokens for s in scheduled.values())
        if not preempted:
            self._admit(budget, scheduled)
        return Batch(scheduled=tuple(scheduled.values()), preempted=tuple(preempted))

    def commit(self, batch: Batch, sampled: Seq[int]) -> list[TokenDelta]:
        """Take over a step's results: `sampled[i]` belongs to `batch.sampling[i]`."""
        deltas = []
        tokens = iter(sampled)
        for item in batch.scheduled:
            token = next(tokens) if item.samples else None
            sequence = item.sequence
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # aborted while the step ran
            sequence.num_computed_tokens += item.num_new_tokens
            self._register_full_blocks(sequence)
            if token is not None:
                deltas.append(self._append(sequence, token))
        return deltas

    # ------------------------------------------------------------ views

    def stats(self) -> SchedulerStats:
        """Cheap enough for every step."""
        used = self._pool.num_blocks - self._pool.num_free
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=self._num_waiting,
            kv_cache_usage=used / self._pool.num_blocks,
            num_preemptions=self._num_preemptions,
            prefix_cache_queries=self._prefix_queries,
            prefix_cache_hits=self._prefix_hits,
        )

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            InternalError: a block is lost, or a sequence forgotten.
        """
        self._pool.check_integrity(block for s in self._sequences.values() for block in s.block_ids)
        running = {sequence.request_id for sequence in self._running}
        waiting = {s.request_id for _, _, s in self._waiting if s.status is SequenceStatus.WAITING}
        if running | waiting != set(self._sequences) or running & waiting:
            raise InternalError("a sequence is neither waiting nor running, or both")
        if len(waiting) != self._num_waiting:
            raise InternalError("the number of waiting sequences is wrong")

    # ------------------------------------------------------------ admission

    def _admit(self, budget: int, scheduled: dict[str, ScheduledSequence]) -> None:
        while budget > 0 and len(self._running) < self._config.max_num_seqs:
            sequence = self._first_waiting()
            if sequence is None or not self._start(sequence):
                return
            count = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            scheduled[sequence.request_id] = self._item(sequence, count)
            budget -= count

    def _first_waiting(self) -> Sequence | None:
        while self._waiting and self._waiting[0][2].status is not SequenceStatus.WAITING:
            heapq.heappop(self._waiting)
        return self._waiting[0][2] if self._waiting else None

    def _start(self, sequence: Sequence) -> bool:
        """Give the first waiting sequence blocks for all its tokens, cached ones first; False if too few."""
        shared = self._cached_blocks(sequence)
        wanted = self._blocks_for(sequence.num_tokens) - len(shared)
        reclaimed = sum(self._pool.is_free(block) for block in shared)
        headroom = 1 if self._running else 0  # a block for whoever runs, or it would be preempted at once
        if wanted + reclaimed + headroom > self._pool.num_free:
            return False
        for block in shared:
            self._pool.share(block)
        own = self._pool.allocate(wanted)
        if own is None:
            raise InternalError("free KV blocks vanished during admission")
        heapq.heappop(self._waiting)
        self._num_waiting -= 1
        sequence.block_ids = shared + own
        sequence.num_computed_tokens = len(shared) * self._config.block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._prefix_queries += sequence.num_prompt_tokens
            self._prefix_hits += sequence.num_computed_tokens
        sequence.status = SequenceStatus.RUNNING
        self._running.append(sequence)
        return True

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks that already hold a prefix of the sequence; its last token is always left to compute."""
        if not self._config.enable_prefix_caching:
            return []
        found: list[int] = []
        for index in range((sequence.num_tokens - 1) // self._config.block_size):
            block = self._pool.find(self._hash(sequence, index))
            if block is None:
                break
            found.append(block)
        return found

    # ------------------------------------------------------------ blocks

    def _make_room(
        self,
        sequence: Sequence,
        count: int,
        scheduled: dict[str, ScheduledSequence],
        preempted: list[str],
    ) -> bool:
        """Blocks for `count` more tokens, preempting the youngest until they are there; False if it was itself."""
        missing = self._blocks_for(sequence.num_computed_tokens + count) - len(sequence.block_ids)
        while missing > 0:
            blocks = self._pool.allocate(missing)
            if blocks is not None:
                sequence.block_ids += blocks
                return True
            victim = max(self._running, key=lambda s: (s.request.priority, s.arrival))
            self._preempt(victim)
            preempted.append(victim.request_id)
            scheduled.pop(victim.request_id, None)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self._running.remove(sequence)
        self._num_preemptions += 1
        sequence.num_computed_tokens = 0
        self._enqueue(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._pool.free(reversed(sequence.block_ids))
        sequence.block_ids = []

    def _register_full_blocks(self, sequence: Sequence) -> None:
        if not self._config.enable_prefix_caching:
            return
        num_full = sequence.num_computed_tokens // self._config.block_size
        for index in range(sequence.num_registered_blocks, num_full):
            self._pool.register(sequence.block_ids[index], self._hash(sequence, index))
        sequence.num_registered_blocks = num_full

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        """The name of the sequence's block `index`; remembered, since tokens never change."""
        hashes = sequence.block_hashes
        size = self._config.block_size
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else first_parent(sequence.request.cache_salt)
            start = len(hashes) * size
            hashes.append(block_hash(parent, sequence.token_ids[start : start + size]))
        return hashes[index]

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._config.block_size)

    # ------------------------------------------------------------ a sequence's own life

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.WAITING
        sequence.num_registered_blocks = 0
        heapq.heappush(self._waiting, (sequence.request.priority, sequence.arrival, sequence))
        self._num_waiting += 1

    def _item(self, sequence: Sequence, count: int) -> ScheduledSequence:
        start = sequence.num_computed_tokens
        return ScheduledSequence(sequence, start, count, start + count == sequence.num_tokens)

    def _append(self, sequence: Sequence, token: int) -> TokenDelta:
        first = not sequence.output_token_ids
        sequence.token_ids.append(token)
        sequence.output_token_ids.append(token)
        reason = self._finish_reason(sequence, token)
        if reason is not None:
            self._finish(sequence, reason)
        return TokenDelta(
            request_id=sequence.request_id,
            token_ids=(token,),
            finish_reason=reason,
            num_cached_tokens=(sequence.num_cached_tokens or 0) if first else 0,
        )

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.sampling
        if sequence.num_output_tokens >= sampling.min_tokens:
            if token in self._config.eos_token_ids and not sampling.ignore_eos:
                return FinishReason.STOP
            if token in sampling.stop_token_ids:
                return FinishReason.STOP
        if sequence.num_output_tokens >= sampling.max_tokens:
            return FinishReason.LENGTH
        return FinishReason.LENGTH if sequence.num_tokens >= self._config.max_model_len else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._running.remove(sequence)
            self._release(sequence)
        else:
            self._num_waiting -= 1
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        del self._sequences[sequence.request_id]


def _decodes_first(sequence: Sequence) -> tuple[bool, int, int]:
    prefills = sequence.num_tokens - sequence.num_computed_tokens > 1
    return (prefills, sequence.request.priority, sequence.arrival)
