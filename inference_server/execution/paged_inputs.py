"""From a scheduler's batch to the numbers of one paged step, on the host, and from their upload to a step.

Rows are ordered by kind: decodes, then chunks, then cold chunks. Pure but for the block tables, whose rows it
assigns; it computes nothing on the device but views.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from inference_server.execution.block_tables import BlockTables
from inference_server.execution.paged_step import PagedStep, Region
from inference_server.execution.rows import new_tokens
from inference_server.execution.upload import Ints
from inference_server.scheduling.batch import Batch, ScheduledSequence

NUM_HEAD_PARTS = 5  # of `HostStep.head`: token ids, positions, slots, lengths, table rows


class Kind(enum.IntEnum):
    """How a sequence's new tokens are attended to; also the order of rows."""

    DECODE = 0
    CHUNK = 1
    COLD = 2


@dataclass(frozen=True, slots=True)
class HostStep:
    """One step as plain numbers. `head` is what every step has, part after part."""

    num_tokens: int
    num_seqs: int
    head: Ints
    sources: Ints  # [num_tokens]: row of the last step's choice that is this token, or -1; empty: all -1
    sample_rows: Ints
    regions: tuple[tuple[Kind, int, int, int, int], ...]  # kind, first and last sequence, row, longest
    query_starts: Ints  # per region: num_seqs + 1 numbers
    places: Ints  # changes of the block table
    values: Ints

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one new token, as a captured graph expects."""
        return len(self.regions) == 1 and self.regions[0][0] is Kind.DECODE

    @property
    def samples_every_row(self) -> bool:
        """Whether the rows to sample are all rows, in order."""
        rows = self.sample_rows
        return len(rows) == self.num_tokens and bool((rows == np.arange(self.num_tokens)).all())

    def padded_head(self, size: int) -> Ints:
        """`head` of a decode, for `size` sequences: the others have length 0 and no slot."""
        parts = self.head.reshape(NUM_HEAD_PARTS, self.num_seqs)
        padded = np.zeros((NUM_HEAD_PARTS, size), dtype=np.int32)
        padded[2] = -1
        padded[:, : self.num_seqs] = parts
        return padded.reshape(-1)

    def arrays(self) -> list[Ints]:
        """What an eager step uploads besides `head`."""
        return [self.sources, self.sample_rows, self.query_starts, self.places, self.values]


class PagedInputs:
    """Plans steps for one cache. `cold_from`: new tokens from which on a cold chunk is a kind of its own."""

    def __init__(self, tables: BlockTables, *, block_size: int, cold_from: int | None) -> None:
        self._tables = tables
        self._block_size = block_size
        self._cold_from = cold_from

    def plan(self, batch: Batch, sampled: Mapping[str, int]) -> HostStep:
        """The numbers of one step. `sampled`: which row of the step in flight chooses a request's next token.

        Raises:
            ValueError: the batch is empty, or carries a token that no step in flight chooses.
        """
        if not batch.scheduled:
            raise ValueError("an empty batch has no input")
        items = sorted(batch.scheduled, key=self._kind)
        num_seqs = len(items)
        counts = np.array([item.num_new_tokens for item in items], dtype=np.int64)
        starts = np.array([item.start for item in items], dtype=np.int64)
        table_rows = np.array(self._tables.assign([item.sequence for item in items]), dtype=np.int64)
        ends = counts.cumsum()
        first_rows = ends - counts
        num_tokens = int(ends[-1])
        owner = np.repeat(np.arange(num_seqs), counts)
        positions = starts[owner] + np.arange(num_tokens) - first_rows[owner]
        blocks = self._tables.host[table_rows[owner], positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size
        ids = [token for item in items for token in new_tokens(item)]
        places, values = self._tables.pending()
        regions, query_starts = self._regions(items, counts, first_rows)
        return HostStep(
            num_tokens=num_tokens,
            num_seqs=num_seqs,
            head=np.concatenate([ids, positions, slots, starts + counts, table_rows]).astype(np.int32),
            sources=_sources(items, first_rows, num_tokens, sampled),
            sample_rows=_sample_rows(batch, items, ends),
            regions=regions,
            query_starts=query_starts,
            places=places,
            values=values,
        )

    def _kind(self, item: ScheduledSequence) -> Kind:
        if item.num_new_tokens == 1:
            return Kind.DECODE
        if item.start == 0 and self._cold_from is not None and item.num_new_tokens >= self._cold_from:
            return Kind.COLD
        return Kind.CHUNK

    def _regions(
        self, items: Seq[ScheduledSequence], counts: np.ndarray, first_rows: np.ndarray
    ) -> tuple[tuple[tuple[Kind, int, int, int, int], ...], Ints]:
        kinds = np.array([self._kind(item) for item in items])
        regions = []
        all_starts: list[Ints] = []
        for kind in Kind:
            members = np.flatnonzero(kinds == kind)
            if not len(members):
                continue
            first, last = int(members[0]), int(members[-1]) + 1
            longest = int(counts[first:last].max())
            regions.append((kind, first, last, int(first_rows[first]), longest))
            all_starts.append(np.concatenate([[0], counts[first:last].cumsum()]).astype(np.int32))
        return tuple(regions), np.concatenate(all_starts)


def _sources(
    items: Seq[ScheduledSequence], first_rows: np.ndarray, num_tokens: int, sampled: Mapping[str, int]
) -> Ints:
    carried = [number for number, item in enumerate(items) if item.carries]
    if not carried:
        return np.empty(0, dtype=np.int32)
    sources = np.full(num_tokens, -1, dtype=np.int32)
    for number in carried:
        request_id = items[number].sequence.request_id
        if request_id not in sampled:
            raise ValueError("no step in flight chooses the token that a sequence carries")
        sources[first_rows[number]] = sampled[request_id]
    return sources


def _sample_rows(batch: Batch, items: Seq[ScheduledSequence], ends: np.ndarray) -> Ints:
    """In the order of `batch.sampling`, which need not be that of the rows; then those that give scores."""
    last = {item.sequence.request_id: int(end) for item, end in zip(items, ends, strict=True)}
    rows: list[int] = []
    for item in batch.sampling:
        end = last[item.sequence.request_id]
        rows += range(end - 1 - len(item.draft_token_ids), end)
    for item in batch.scheduled:
        if item.scored:
            first = last[item.sequence.request_id] - item.num_new_tokens
            rows += [first + offset for offset in item.scored_offsets]
    return np.array(rows, dtype=np.int32)


def paged_step(
    host: HostStep,
    head: torch.Tensor,
    input_ids: torch.Tensor,
    query_starts: torch.Tensor,
    sample_rows: torch.Tensor,
    block_table: torch.Tensor,
) -> PagedStep:
    """An eager step over uploaded numbers. `input_ids` [num_tokens] have the carried tokens in place."""
    tokens, seqs = host.num_tokens, host.num_seqs
    _, positions, slots, lengths, table_rows = torch.split(head, [tokens, tokens, tokens, seqs, seqs])
    found: dict[Kind, Region] = {}
    offset = 0
    for kind, first, last, first_row, longest in host.regions:
        num_starts = last - first + 1
        next_row = min((r[3] for r in host.regions if r[3] > first_row), default=tokens)
        found[kind] = Region(
            first_row=first_row,
            last_row=next_row,
            max_query_len=longest,
            query_starts=query_starts[offset : offset + num_starts],
            kv_lengths=lengths[first:last],
            table_rows=table_rows[first:last],
        )
        offset += num_starts
    return PagedStep(
        input_ids=input_ids.long()[None],
        position_ids=positions.long()[None],
        slots=slots,
        block_table=block_table,
        decodes=found.get(Kind.DECODE),
        chunks=found.get(Kind.CHUNK),
        cold=found.get(Kind.COLD),
        sample_rows=sample_rows.long(),
    )
