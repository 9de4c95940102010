"""Continuous batching: who computes how many tokens in the next step, and what becomes of the results.

Owner of all sequences and, through `residency.py`, of their blocks; used by the engine's thread only. It
knows no tensors, no clock and no text. There is no prefill and no decode phase: every sequence's
`num_computed_tokens` runs after its `num_tokens`, and each step hands out a token budget.

- Running sequences come first, the senior ones (priority, then arrival) before others. Each gets at least one
  token per step.
- Then waiting ones are admitted by turns of their tenants (`fair_queue.py`) and each tenant's in rank order,
  so that a large one is never overtaken for good. Only those are passed over whose beginning a running
  sequence is computing just now.
- An admission takes blocks for *all* tokens that the sequence has, and leaves one free block for each running
  sequence. With less, a long prompt would be thrown out half computed, and admitted again, and so on.
- When a running sequence needs a block and none is free, the most junior is preempted: it gives up its
  blocks, waits at its old rank, and is computed again. The most senior therefore always advances; as `add`
  refuses whatever could not finish alone in the whole pool, everything admitted comes to its end.
- `schedule` may be called with one step in flight. What that step will sample is then an input that is
  carried on the device. Whoever is in a step in flight is neither preempted nor freed before its commit; what
  a step computes for a sequence that has ended meanwhile is dropped.
- A prompt whose scores are wanted is cut so that a step has no more rows of logits than `max_num_seqs`, for
  which its memory is planned.
- Long prompts are paced while others decode (`pacing.py`); drafts (`speculation.py`) take budget and blocks
  that nobody else needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import msgspec

from inference_server.errors import ContextTooLong, InternalError, InvalidRequest
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.constraint import Constraint
from inference_server.scheduling.drafting import Drafting
from inference_server.scheduling.integrity import check_scheduler
from inference_server.scheduling.pacing import PrefillPacer
from inference_server.scheduling.residency import Residency
from inference_server.scheduling.sequence import Sequence, SequenceStatus
from inference_server.types import FinishReason, GenerationRequest, TokenDelta

MAX_IN_FLIGHT = 2  # steps scheduled and not committed
MIN_PIECE = 4  # tokens of a paced prompt that a step computes, however long they take


class SchedulerStats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's state; from `num_preemptions` on they are totals.

    `kv_cache_usage` is the share of blocks that are held.
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    num_preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_draft_tokens: int
    num_accepted_tokens: int


class _Plan:
    """A step in the making. `allowance`: what is left for long prompts; None until one asks.

    `num_scored`: prompt tokens whose scores it gives so far.
    """

    __slots__ = ("allowance", "budget", "num_scored", "preempted", "scheduled")

    def __init__(self, budget: int) -> None:
        self.scheduled: list[ScheduledSequence] = []
        self.preempted: list[str] = []
        self.budget = budget
        self.allowance: int | None = None
        self.num_scored = 0

    def put(self, item: ScheduledSequence) -> None:
        """Make it part of the step."""
        num_new_tokens = item.num_new_tokens
        num_awaited = 1 + len(item.draft_token_ids) if item.samples else 0
        item.sequence.begin_step(item.start + num_new_tokens, num_awaited)
        self.budget -= num_new_tokens
        self.scheduled.append(item)


class Scheduler:
    """`schedule` → (the runner computes) → `commit` or `fail`; `add` and `abort` at any time in between."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._block_size = config.block_size
        self._residency = Residency(config)
        self._drafting = Drafting(config.speculation, self._residency.running)
        self._in_flight: deque[Batch] = deque()  # scheduled and not committed, oldest first
        # Each running sequence takes at least one token of a step's budget.
        self._max_running = min(config.max_num_seqs, config.max_num_batched_tokens)
        self._pacer = PrefillPacer(
            slowdown=config.prefill_slowdown,
            min_tokens=MIN_PIECE,
            max_tokens=config.max_num_batched_tokens,
        )
        self._num_arrivals = 0

    # ---------------------------------------------------------------- requests

    def add(self, request: GenerationRequest, constraint: Constraint | None = None) -> None:
        """Queue a request; `constraint` limits its tokens.

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
        sequence = Sequence(
            request,
            arrival=self._num_arrivals,
            max_num_tokens=max_num_tokens,
            constraint=constraint,
        )
        self._num_arrivals += 1
        self._residency.add(sequence)

    def abort(self, request_id: str) -> bool:
        """Forget a request; False if it is unknown or finished.

        Its blocks are free at once, or, if it is in a step in flight, with that step's commit, which drops
        what was computed for it.
        """
        sequence = self._residency.sequences.get(request_id)
        if sequence is None:
            return False
        self._residency.finish(sequence, FinishReason.ABORT)
        return True

    def forget_cached_blocks(self) -> None:
        """The KV cache has lost its content: no later request may find blocks by it.

        Raises:
            InternalError: a sequence still needs its blocks.
        """
        self._residency.forget_cached_blocks()

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._residency.sequences)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._residency.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for their first step, or for their next after a preemption."""
        return len(self._residency.waiting)

    def stats(self) -> SchedulerStats:
        """Counters as they stand."""
        residency = self._residency
        pool = residency.pool
        return SchedulerStats(
            num_running=len(residency.running),
            num_waiting=len(residency.waiting),
            kv_cache_usage=1.0 - pool.num_free / pool.num_blocks,
            num_preemptions=residency.num_preemptions,
            prefix_cache_queries=residency.cache.num_queries,
            prefix_cache_hits=residency.cache.num_hits,
            num_draft_tokens=self._drafting.num_draft_tokens,
            num_accepted_tokens=self._drafting.num_accepted_tokens,
        )

    def check_integrity(self) -> None:
        """For tests, between any two calls.

        Raises:
            InternalError: a block or a sequence is lost, shared wrongly or miscounted.
        """
        check_scheduler(self._config, self._residency, self._in_flight)

    # ---------------------------------------------------------------- schedule

    def schedule(self) -> Batch:
        """The next step's batch, which is in flight from now on unless it is empty.

        With nothing else in flight it is not empty while any request is unfinished. With a step in flight it
        is empty if everybody has to wait for that step.

        Raises:
            InternalError: two steps are in flight already.
        """
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            raise InternalError(f"{MAX_IN_FLIGHT} steps are in flight already")
        if self._in_flight and self._drafting.must_wait():
            return Batch(scheduled=(), preempted=())
        plan = _Plan(self._config.max_num_batched_tokens)
        if self._schedule_running(plan) and not plan.preempted:
            self._schedule_waiting(plan)
        batch = Batch(scheduled=tuple(plan.scheduled), preempted=tuple(plan.preempted))
        if plan.scheduled:
            self._in_flight.append(batch)
        return batch

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learn how long a step took: the engine measures, as there is no clock here."""
        if self._pacer.is_on:
            decoding = batch.decoding
            num_decode_tokens = sum([item.num_new_tokens for item in decoding])
            self._pacer.observe(
                num_decodes=len(decoding),
                num_prompt_tokens=batch.num_tokens - num_decode_tokens,
                depth=batch.prompt_depth,
                seconds=seconds,
            )

    def _schedule_running(self, plan: _Plan) -> bool:
        """Give the running sequences tokens, senior ones first; False if one found no block.

        There is a token for each: a sequence is admitted only into budget that all earlier ones leave over.
        """
        running = self._residency.running
        index = 0
        while index < len(running):
            sequence = running[index]
            num_awaited = sequence.num_awaited_tokens
            if num_awaited and len(sequence.token_ids) + 1 >= sequence.max_num_tokens:
                index += 1
                continue  # the token that it awaits is its last
            if num_awaited and sequence.constraint is not None:
                index += 1
                continue  # which tokens may follow depends on the one that it awaits
            num_tokens = len(sequence.token_ids) + num_awaited
            is_short = num_tokens > len(sequence.block_ids) * self._block_size
            if is_short and not self._residency.grow(sequence, plan.preempted):
                return False
            index += 1
            start = sequence.num_scheduled_tokens
            available = plan.budget - (len(running) - index)
            if num_tokens - start > 1:
                self._put_prompt(plan, sequence, available)
            elif num_awaited:
                plan.put(ScheduledSequence(sequence, start, 1, True, carries=True))
            elif drafts := self._drafts(sequence, available - 1):
                plan.put(ScheduledSequence(sequence, start, 1 + len(drafts), True, drafts))
            else:
                plan.put(ScheduledSequence(sequence, start, 1, True))
        return True

    def _schedule_waiting(self, plan: _Plan) -> None:
        """Admit whose turn it is for as long as slots, blocks and budget last."""
        running, waiting = self._residency.running, self._residency.waiting
        passed_over: dict[str, int] = {}
        while plan.budget > 0 and len(running) < self._max_running:
            sequence = waiting.next(passed_over)
            if sequence is None:
                break
            cached = self._residency.cache.match(sequence)
            if cached is None:
                tenant = sequence.request.tenant
                passed_over[tenant] = passed_over.get(tenant, 0) + 1
                continue
            num_missing = sequence.num_tokens - len(cached) * self._block_size
            is_paced = self._pacer.is_on and num_missing > self._config.long_prompt_tokens
            if is_paced and not self._allowance(plan):
                break
            if not self._residency.admit(sequence, cached):
                break
            sequence.is_paced = is_paced
            self._put_prompt(plan, sequence, plan.budget)

    def _put_prompt(self, plan: _Plan, sequence: Sequence, available: int) -> None:
        """As much as may be of the tokens that a sequence has and that are not computed."""
        start = sequence.num_scheduled_tokens
        num_missing = len(sequence.token_ids) - start
        num_new_tokens = min(num_missing, available)
        if sequence.is_paced:
            num_new_tokens = min(num_new_tokens, self._allowance(plan))
        scored = range(0)
        if sequence.wants_scores:
            num_new_tokens, scored = self._scored(plan, sequence, num_new_tokens)
        if sequence.is_paced:
            plan.allowance = self._allowance(plan) - num_new_tokens
        if num_new_tokens:
            samples = num_new_tokens == num_missing
            plan.put(ScheduledSequence(sequence, start, num_new_tokens, samples, scored=scored))

    def _scored(self, plan: _Plan, sequence: Sequence, num_new_tokens: int) -> tuple[int, range]:
        """How many of these tokens a step has rows of logits for, and the positions that they score."""
        start = sequence.num_scheduled_tokens
        first = max(start + 1, sequence.num_scored_tokens)
        stop = min(start + num_new_tokens + 1, sequence.num_prompt_tokens)
        num_rows = max(1, self._config.max_num_seqs - len(self._residency.running))
        num_rows = max(0, num_rows - plan.num_scored)
        if stop - first > num_rows:
            stop = first + num_rows
            num_new_tokens = stop - 1 - start
        scored = range(first, max(first, stop))
        plan.num_scored += len(scored)
        return num_new_tokens, scored

    def _allowance(self, plan: _Plan) -> int:
        """What is left for long prompts in this step."""
        if plan.allowance is None:
            running = self._residency.running
            num_decodes = sum([len(s.token_ids) - s.num_computed_tokens == 1 for s in running])
            plan.allowance = self._pacer.allowance(
                num_decodes=num_decodes,
                num_prefilling=len(running) - num_decodes + len(self._residency.waiting),
                may_rest=self._residency.pool.num_free >= len(running),
            )
        return plan.allowance

    def _drafts(self, sequence: Sequence, budget: int) -> tuple[int, ...]:
        """A guess at what follows, within the budget and blocks that nobody needs."""
        drafts = self._drafting.propose(sequence, budget)
        num_tokens = len(sequence.token_ids)
        if drafts and not self._residency.try_reserve(sequence, num_tokens + len(drafts)):
            return drafts[: len(sequence.block_ids) * self._block_size - num_tokens]
        return drafts

    # ---------------------------------------------------------------- commit

    def commit(self, batch: Batch, sampled: Seq[Seq[int]]) -> list[TokenDelta]:
        """Take the results of the oldest step in flight; `sampled[i]` belongs to `batch.sampling[i]`.

        That is one token, or one more for each of its drafts that was right. Sequences that have ended since
        `schedule` are passed over. Finished ones leave, and their blocks are free unless a step in flight
        writes to them.

        Raises:
            InternalError: the batch is not the oldest one in flight, or the tokens do not fit it.
        """
        results = self._checked(batch, sampled)
        self._in_flight.popleft()
        deltas: list[TokenDelta] = []
        for item in batch.scheduled:
            sequence = item.sequence
            sequence.num_steps_in_flight -= 1
            token_ids = next(results) if item.samples else ()
            if item.scored:
                sequence.num_scored_tokens = item.scored.stop
            if sequence.status is not SequenceStatus.RUNNING:
                self._residency.release(sequence)
            elif token_ids:
                deltas.append(self._extend(item, token_ids))
            else:
                self._residency.advance(sequence, item.start + item.num_new_tokens)
        return deltas

    def fail(self, batch: Batch) -> list[str]:
        """Give up a step in flight: its unfinished requests end as if aborted. Returns their ids.

        Raises:
            InternalError: the batch is not in flight.
        """
        if not any(batch is other for other in self._in_flight):
            raise InternalError("only a batch in flight can fail")
        self._in_flight.remove(batch)
        failed = []
        for item in batch.scheduled:
            sequence = item.sequence
            sequence.num_steps_in_flight -= 1
            if sequence.status is SequenceStatus.RUNNING:
                failed.append(sequence.request_id)
                self._residency.finish(sequence, FinishReason.ABORT)
            else:
                self._residency.release(sequence)
        return failed

    def _checked(self, batch: Batch, sampled: Seq[Seq[int]]) -> Iterator[Seq[int]]:
        """The results, if they fit the batch."""
        if not self._in_flight or batch is not self._in_flight[0]:
            raise InternalError("only the oldest batch in flight can be committed, and only once")
        most = [1 + len(item.draft_token_ids) for item in batch.scheduled if item.samples]
        if len(sampled) != len(most):
            raise InternalError(f"{len(sampled)} results for {len(most)} sequences")
        if not all(0 < len(found) <= limit for found, limit in zip(sampled, most, strict=True)):
            raise InternalError("a sequence got no token, or more than it has drafts for")
        return iter(sampled)

    def _extend(self, item: ScheduledSequence, token_ids: Seq[int]) -> TokenDelta:
        """Append what was sampled, up to the token that ends the sequence."""
        sequence = item.sequence
        is_first = not sequence.output_token_ids
        num_taken = 0
        reason = None
        for token_id in token_ids:
            sequence.append(token_id)
            num_taken += 1
            reason = self._finish_reason(sequence, token_id)
            if reason is not None:
                break
        sequence.num_awaited_tokens -= 1 + len(item.draft_token_ids)
        self._residency.waiting.charge_answer(sequence, num_taken)
        self._residency.advance(sequence, item.sample_position + num_taken - 1)
        if item.draft_token_ids:
            sequence.num_scheduled_tokens = sequence.num_computed_tokens  # what follows a wrong one is void
            self._drafting.learn(item, num_accepted=len(token_ids) - 1)
        if reason is not None:
            self._residency.finish(sequence, reason)
        return TokenDelta(
            request_id=sequence.request_id,
            token_ids=tuple(token_ids[:num_taken]),
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

    def _refuse_malformed(self, request: GenerationRequest) -> None:
        if request.request_id in self._residency.sequences:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", param="request_id")
        if not request.prompt_token_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if request.sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        vocab_size = self._config.vocab_size
        if min(request.prompt_token_ids) < 0 or max(request.prompt_token_ids) >= vocab_size:
            raise InvalidRequest(f"the prompt has token ids outside 0…{vocab_size - 1}", param="prompt")
