"""The scheduler's invariants, checked from outside: for tests and for hunting bugs, never on the hot path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from inference_server.errors import InternalError
from inference_server.scheduling.block_pool import BlockPool
from inference_server.scheduling.ranking import RankedSequences
from inference_server.scheduling.sequence import Sequence, SequenceStatus


class Limits(Protocol):
    """What the checks need to know of a scheduler's configuration."""

    @property
    def max_num_seqs(self) -> int:
        """Cap of running sequences."""

    @property
    def block_size(self) -> int:
        """Tokens per block."""


def check_scheduler(
    limits: Limits,
    pool: BlockPool,
    *,
    sequences: Mapping[str, Sequence],
    running: RankedSequences,
    waiting: RankedSequences,
) -> None:
    """Every sequence in exactly one list, every block accounted for, nothing shared but published content.

    Raises:
        InternalError: naming the first thing that is wrong.
    """
    _check_membership(sequences, running, waiting)
    if len(running) > limits.max_num_seqs:
        raise InternalError(f"{len(running)} sequences run, {limits.max_num_seqs} may")
    holders = [0] * pool.num_blocks
    for sequence in running:
        _check_running(sequence, limits.block_size)
        for block_id in sequence.block_ids:
            holders[block_id] += 1
    for sequence in waiting:
        _check_waiting(sequence)
    pool.check_integrity(holders)
    for sequence in running:
        _check_blocks(sequence, pool, holders)


def _check_membership(
    sequences: Mapping[str, Sequence], running: RankedSequences, waiting: RankedSequences
) -> None:
    listed = [sequence.request_id for sequence in (*running, *waiting)]
    _demand(sorted(listed) == sorted(sequences), listed, "some sequence is forgotten, or listed twice")
    _demand(running.is_sorted() and waiting.is_sorted(), listed, "the ranks are out of order")


def _check_running(sequence: Sequence, block_size: int) -> None:
    name = (sequence.request_id,)
    _demand(sequence.status is SequenceStatus.RUNNING, name, "listed as running, but is not")
    _demand(sequence.num_computed_tokens < sequence.num_tokens, name, "has nothing left to compute")
    _demand(sequence.num_tokens < sequence.max_num_tokens, name, "should have finished")
    capacity = len(sequence.block_ids) * block_size
    _demand(sequence.num_computed_tokens <= capacity, name, "has computed more than its blocks hold")
    _demand(capacity < sequence.num_tokens + block_size, name, "holds a block that it does not need")
    num_published = sequence.num_published_blocks
    _demand(num_published * block_size <= sequence.num_computed_tokens, name, "published too early")


def _check_waiting(sequence: Sequence) -> None:
    name = (sequence.request_id,)
    _demand(sequence.status is SequenceStatus.WAITING, name, "listed as waiting, but is not")
    _demand(not sequence.block_ids, name, "waits, but holds blocks")
    _demand(sequence.num_computed_tokens == 0, name, "waits, but has computed tokens")
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
