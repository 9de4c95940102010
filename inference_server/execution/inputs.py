"""From a scheduler's batch to the tensors of one step. Pure: no model, no cache contents.

Rows of the flat batch are tokens, sequence after sequence, in the order of `batch.scheduled`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from inference_server.execution.rows import new_tokens
from inference_server.scheduling.batch import Batch, ScheduledSequence

# Decode sequences share one padded attention call while the longest is at most this much longer (in blocks).
MAX_PADDING_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several new tokens of one sequence: rows [first_row, last_row) at positions start…total-1."""

    first_row: int
    last_row: int
    start: int
    total: int
    block_table: torch.Tensor  # [1, width]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one new token each, of similar length, for one padded attention call."""

    rows: torch.Tensor  # [num_seqs]
    block_table: torch.Tensor  # [num_seqs, width]
    lengths: torch.Tensor  # [num_seqs], tokens including the new one


@dataclass(slots=True)
class StepInput:
    """Everything that a forward pass needs to know of its batch. Lives for one step."""

    input_ids: torch.Tensor  # [1, num_tokens]
    position_ids: torch.Tensor  # [1, num_tokens]
    slots: torch.Tensor  # [num_tokens], where each token's key and value go
    chunks: tuple[Chunk, ...]
    groups: tuple[DecodeGroup, ...]
    fresh_blocks: torch.Tensor | None  # [n], blocks begun and not filled in this step
    sample_rows: torch.Tensor  # [num_samples], rows whose logits are wanted: sampled ones, then scored ones
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)  # made once per step


class InputBuilder:
    """Builds step inputs for one cache geometry and device."""

    def __init__(self, *, block_size: int, padding_block: int, device: torch.device) -> None:
        self._block_size = block_size
        self._padding_block = padding_block
        self._device = device

    def build(self, batch: Batch) -> StepInput:
        """The tensors of one step.

        Raises:
            ValueError: the batch is empty, or a token of it is not known yet.
        """
        if not batch.scheduled:
            raise ValueError("an empty batch has no input")
        if any(item.carries for item in batch.scheduled):
            raise ValueError("this runner finishes each step before the next is launched")
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        chunks: list[Chunk] = []
        decodes: list[tuple[int, int, list[int]]] = []  # row, length, blocks
        fresh: list[int] = []
        sample_rows: list[int] = []
        score_rows: list[int] = []
        for item in batch.scheduled:
            row = len(tokens)
            end = item.start + item.num_new_tokens
            blocks = self._blocks(item, end)
            tokens += new_tokens(item)
            positions += range(item.start, end)
            slots += [self._slot(blocks, position) for position in range(item.start, end)]
            if item.num_new_tokens == 1:
                decodes.append((row, end, blocks))
            else:
                chunks.append(Chunk(row, row + item.num_new_tokens, item.start, end, self._ints([blocks])))
            last = blocks[-1]
            if end % self._block_size and (end - 1) // self._block_size * self._block_size >= item.start:
                fresh.append(last)
            if item.samples:
                first_row = row + item.num_new_tokens - 1 - len(item.draft_token_ids)
                sample_rows += range(first_row, row + item.num_new_tokens)
            if item.scored:
                score_rows += [row + offset for offset in item.scored_offsets]
        return StepInput(
            input_ids=self._ints([tokens]),
            position_ids=self._ints([positions]),
            slots=self._ints(slots),
            chunks=tuple(chunks),
            groups=tuple(self._group(decodes)),
            fresh_blocks=self._ints(fresh) if fresh else None,
            sample_rows=self._ints(sample_rows + score_rows),
        )

    def _blocks(self, item: ScheduledSequence, end: int) -> list[int]:
        return item.sequence.block_ids[: -(-end // self._block_size)]

    def _slot(self, blocks: list[int], position: int) -> int:
        return blocks[position // self._block_size] * self._block_size + position % self._block_size

    def _group(self, decodes: list[tuple[int, int, list[int]]]) -> list[DecodeGroup]:
        """Cut the decodes, sorted by length, wherever padding would cost more than the ratio allows."""
        groups: list[DecodeGroup] = []
        members: list[tuple[int, int, list[int]]] = []
        for decode in sorted(decodes, key=lambda entry: len(entry[2])):
            if members and len(decode[2]) > max(4, len(members[0][2]) * MAX_PADDING_RATIO):
                groups.append(self._padded(members))
                members = []
            members.append(decode)
        if members:
            groups.append(self._padded(members))
        return groups

    def _padded(self, members: list[tuple[int, int, list[int]]]) -> DecodeGroup:
        width = len(members[-1][2])
        table = [blocks + [self._padding_block] * (width - len(blocks)) for _, _, blocks in members]
        return DecodeGroup(
            rows=self._ints([row for row, _, _ in members]),
            block_table=self._ints(table),
            lengths=self._ints([length for _, length, _ in members]),
        )

    def _ints(self, values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
