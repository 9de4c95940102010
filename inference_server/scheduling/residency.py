"""Who holds KV blocks: admission, growth, preemption and leave-taking of sequences.

Owner of the block pool, the prefix cache and the queues; the scheduler, its only user, decides when each of
these happens and how many tokens a step computes. The rules are in `scheduler.py`.
"""

from __future__ import annotations

from inference_server.errors import InternalError
from inference_server.scheduling.block_pool import BlockPool
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.fair_queue import FairQueue
from inference_server.scheduling.prefix_cache import PrefixCache
from inference_server.scheduling.ranking import RankedSequences, by_seniority
from inference_server.scheduling.sequence import Sequence, SequenceStatus
from inference_server.types import FinishReason


class Residency:
    """Sequences by whether they hold blocks: waiting ones do not, running ones do, leaving ones still do."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._block_size = config.block_size
        self.pool = BlockPool(config.num_blocks)
        self.cache = PrefixCache(
            self.pool, block_size=config.block_size, enabled=config.enable_prefix_caching
        )
        self.sequences: dict[str, Sequence] = {}  # all unfinished ones, by request id
        self.running = RankedSequences(by_seniority)
        self.waiting = FairQueue()
        self.leaving: set[Sequence] = set()  # finished, and their blocks are written to by a step in flight
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self.sequences[sequence.request_id] = sequence
        self.waiting.join(sequence)
        self.waiting.add(sequence)

    def admit(self, sequence: Sequence, cached: list[int]) -> bool:
        """Start a waiting sequence with these blocks of the cache; False if too few others are free.

        One free block is left for each running sequence.
        """
        num_new_blocks = -(-sequence.num_tokens // self._block_size) - len(cached)
        num_needed = num_new_blocks + self.pool.num_free_among(cached)
        if num_needed + len(self.running) > self.pool.num_free:
            return False
        is_first = not sequence.was_admitted
        self.pool.share(cached)
        blocks = cached + self.pool.allocate(num_new_blocks)
        self.waiting.remove(sequence)
        sequence.admit(blocks, num_cached_blocks=len(cached), block_size=self._block_size)
        self.running.add(sequence)
        self.cache.announce(sequence)
        if is_first:
            self.cache.count(sequence)
            self.waiting.charge_prompt(sequence, sequence.num_tokens - sequence.num_computed_tokens)
        return True

    def grow(self, sequence: Sequence, preempted: list[str]) -> bool:
        """Add the block for its newest token; False if there is none for it in this step.

        Then it has been preempted itself, or blocks come free with the commit of the step in flight: those of
        sequences that have ended, or of the most junior, which can be preempted after it.
        """
        while self.pool.num_free == 0:
            victim = self.running[-1]
            if self.leaving or victim.num_steps_in_flight:
                return False
            self._preempt(victim)
            preempted.append(victim.request_id)
            if victim is sequence:
                return False
        sequence.block_ids += self.pool.allocate(1)
        return True

    def try_reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """See that its blocks hold `num_tokens` tokens; only with blocks that nobody needs in this step."""
        num_blocks = -(-num_tokens // self._block_size) - len(sequence.block_ids)
        if num_blocks > 0:
            if num_blocks + len(self.running) > self.pool.num_free:
                return False
            sequence.block_ids += self.pool.allocate(num_blocks)
        return True

    def advance(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """Its tokens are computed up to here; blocks that are full now can be found by others."""
        sequence.num_computed_tokens = num_computed_tokens
        if num_computed_tokens // self._block_size > sequence.num_published_blocks:
            self.cache.publish(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """An unfinished sequence ends."""
        del self.sequences[sequence.request_id]
        (self.running if sequence.status is SequenceStatus.RUNNING else self.waiting).remove(sequence)
        self.waiting.leave(sequence)
        sequence.finish(reason)
        self.cache.withdraw(sequence)
        self.release(sequence)

    def release(self, sequence: Sequence) -> None:
        """Free the blocks of a finished sequence, unless a step in flight still writes to them."""
        if sequence.num_steps_in_flight:
            self.leaving.add(sequence)
        else:
            self.leaving.discard(sequence)
            self.pool.free(sequence.give_up_blocks())

    def forget_cached_blocks(self) -> None:
        """No block holds anything any more.

        Raises:
            InternalError: a sequence holds blocks.
        """
        if self.running or self.leaving:
            raise InternalError("the KV cache is to be given up while sequences hold blocks of it")
        self.pool.forget_keys()

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.cache.withdraw(sequence)
        self.pool.free(sequence.preempt())
        self.waiting.add(sequence)
        self.num_preemptions += 1
