"""The scheduler's invariants, checked from outside: for tests and for hunting bugs, never on the hot path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from inference_server.errors import InternalError
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.block_pool import BlockPool
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.residency import Residency
from inference_server.scheduling.sequence import Sequence, SequenceStatus


def check_scheduler(config: SchedulerConfig, residency: Residency, in_flight: Iterable[Batch]) -> None:
    """Every sequence in exactly one list, every block accounted for, nothing shared but published content.

    Raises:
        InternalError: naming the first thing that is wrong.
    """
    pool = residency.pool
    _check_membership(residency)
    if len(residency.running) > config.max_num_seqs:
        raise InternalError(f"{len(residency.running)} sequences run, {config.max_num_seqs} may")
    holders = [0] * pool.num_blocks
    holding = [*residency.running, *residency.leaving]
    for sequence in holding:
        for block_id in sequence.block_ids:
            holders[block_id] += 1
    for sequence in residency.running:
        _check_running(sequence, config)
    for sequence in residency.waiting:
        _check_waiting(sequence)
    _check_flight(residency, [item.sequence for batch in in_flight for item in batch.scheduled])
    pool.check_integrity(holders)
    residency.cache.check_integrity(residency.running)
    for sequence in holding:
        _check_blocks(sequence, pool, holders)


def _check_membership(residency: Residency) -> None:
    running, waiting = residency.running, residency.waiting
    listed = [sequence.request_id for sequence in (*running, *waiting)]
    _demand(
        sorted(listed) == sorted(residency.sequences), listed, "some sequence is forgotten, or listed twice"
    )
    _demand(running.is_sorted() and waiting.is_sorted(), listed, "the ranks are out of order")


def _check_running(sequence: Sequence, config: SchedulerConfig) -> None:
    name = (sequence.request_id,)
    _demand(sequence.status is SequenceStatus.RUNNING, name, "listed as running, but is not")
    _demand(sequence.num_computed_tokens < sequence.num_tokens, name, "has nothing left to compute")
    _demand(sequence.num_tokens < sequence.max_num_tokens, name, "should have finished")
    capacity = len(sequence.block_ids) * config.block_size
    _demand(sequence.num_computed_tokens <= capacity, name, "has computed more than its blocks hold")
    _demand(sequence.num_scheduled_tokens <= capacity, name, "is to compute more than its blocks hold")
    _demand(sequence.num_scheduled_tokens < sequence.max_num_tokens, name, "runs past its end")
    num_wanted = sequence.num_tokens + max(sequence.num_awaited_tokens, config.max_draft_tokens)
    _demand(capacity < num_wanted + config.block_size, name, "holds a block that it does not need")
    num_published = sequence.num_published_blocks
    _demand(num_published * config.block_size <= sequence.num_computed_tokens, name, "published too early")


def _check_flight(residency: Residency, in_flight: Seq[Sequence]) -> None:
    """Who is in a step in flight runs, or has ended and is leaving; and nobody else is leaving."""
    num_steps = Counter(in_flight)
    for sequence in (*residency.running, *residency.leaving, *residency.waiting, *num_steps):
        name = (sequence.request_id,)
        _demand(sequence.num_steps_in_flight == num_steps[sequence], name, "its steps are miscounted")
        if sequence.status is SequenceStatus.RUNNING and not num_steps[sequence]:
            is_even = sequence.num_scheduled_tokens == sequence.num_computed_tokens
            _demand(is_even and not sequence.num_awaited_tokens, name, "waits for a step that is not there")
    ended = {sequence for sequence in num_steps if sequence.status is SequenceStatus.FINISHED}
    listed = [sequence.request_id for sequence in residency.leaving]
    _demand(ended == residency.leaving, listed, "some of these are leaving and should not, or another should")


def _check_waiting(sequence: Sequence) -> None:
    name = (sequence.request_id,)
    _demand(sequence.status is SequenceStatus.WAITING, name, "listed as waiting, but is not")
    _demand(not sequence.block_ids, name, "waits, but holds blocks")
    _demand(sequence.num_computed_tokens == 0, name, "waits, but has computed tokens")
    _demand(sequence.num_scheduled_tokens == 0, name, "waits, but is in flight")
    _demand(sequence.num_published_blocks == 0, name, "waits, but has published blocks")


def _check_blocks(sequence: Sequence, pool: BlockPool, holders: list[int]) -> None:
    name = (sequence.request_id,)
    for index, block_id in enumerate(sequence.block_ids):
        key = pool.key_of(block_id)
        if index < sequence.num_published_blocks:
            _demand(key in (None, sequence.block_keys[index]), name, "holds a block of other content")
            _demand(key is not None or holders[block_id] == 1, name, "shares a block that has no key")
        else:
            _demand(key is None and holders[block_id] == 1, name, "shares a block that is not computed")


def _demand(holds: bool, request_ids: Iterable[str], complaint: str) -> None:
    if not holds:
        raise InternalError(f"{', '.join(request_ids)}: {complaint}")
