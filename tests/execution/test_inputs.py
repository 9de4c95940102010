"""Batches become rows, slots, groups and the list of blocks that must be cleared."""

from __future__ import annotations

import pytest
import torch

from inference_server.execution.inputs import MAX_PADDING_RATIO, InputBuilder, StepInput
from inference_server.scheduling.batch import Batch, ScheduledSequence
from tests.execution.paged import BLOCK_SIZE, CPU, make_sequence, schedule

PADDING_BLOCK = 99


def build(batch: Batch) -> StepInput:
    return InputBuilder(block_size=BLOCK_SIZE, padding_block=PADDING_BLOCK, device=CPU).build(batch)


def scheduled(tokens: list[int], blocks: list[int], start: int, num_new: int, samples: bool = True) -> Batch:
    sequence = make_sequence(tokens)
    sequence.block_ids = blocks
    return Batch(scheduled=(ScheduledSequence(sequence, start, num_new, samples),), preempted=())


def fresh(batch: Batch) -> list[int]:
    blocks = build(batch).fresh_blocks
    return [] if blocks is None else blocks.tolist()


def test_a_chunk_has_its_tokens_positions_and_slots() -> None:
    step = build(scheduled(list(range(10, 20)), [5, 0, 7], start=3, num_new=4))
    assert step.input_ids.tolist() == [[13, 14, 15, 16]]
    assert step.position_ids.tolist() == [[3, 4, 5, 6]]
    assert step.slots.tolist() == [5 * 4 + 3, 0, 1, 2]
    (chunk,) = step.chunks
    assert (chunk.first_row, chunk.last_row, chunk.start, chunk.total) == (0, 4, 3, 7)
    assert chunk.block_table.tolist() == [[5, 0]]  # the third block is not reached yet
    assert step.groups == ()


def test_one_token_is_a_decode_wherever_it_comes_from() -> None:
    step = build(scheduled([3], [6], start=0, num_new=1))
    (group,) = step.groups
    assert group.rows.tolist() == [0]
    assert group.lengths.tolist() == [1]
    assert group.block_table.tolist() == [[6]]
    assert step.chunks == ()


@pytest.mark.parametrize(
    ("start", "num_new", "expected"),
    [
        (0, 1, [10]),  # begins the first block
        (0, 3, [10]),
        (0, 4, []),  # fills it
        (0, 5, [11]),  # fills the first, begins the second
        (3, 1, []),  # fills what an earlier step began
        (2, 1, []),  # goes on in it
        (4, 1, [11]),
        (3, 2, [11]),
        (5, 2, []),
        (6, 7, [13]),
        (5, 7, []),
    ],
)
def test_blocks_that_are_begun_and_not_filled_are_cleared(
    start: int, num_new: int, expected: list[int]
) -> None:
    assert fresh(scheduled([1] * (start + num_new), [10, 11, 12, 13], start, num_new)) == expected


def test_only_sequences_that_sample_have_their_last_row_read() -> None:
    spans = [(0, 5), (7, 1), (2, 3), (9, 1)]
    whole = schedule(spans, 64)
    items = tuple(
        ScheduledSequence(item.sequence, item.start, item.num_new_tokens, number != 2)
        for number, item in enumerate(whole.scheduled)
    )
    step = build(Batch(scheduled=items, preempted=()))
    assert step.sample_rows.tolist() == [4, 5, 9]
    assert build(scheduled([1, 2], [0], 0, 2, samples=False)).sample_rows.tolist() == []


def test_every_decode_is_in_one_group_and_no_group_is_padded_too_much() -> None:
    spans = [(length, 1) for length in (3, 90, 15, 16, 17, 5, 40, 41, 44, 200, 0)]
    step = build(schedule(spans, 400))
    rows = [row for group in step.groups for row in group.rows.tolist()]
    assert sorted(rows) == list(range(len(spans)))
    for group in step.groups:
        for row, length, table in zip(
            group.rows.tolist(), group.lengths.tolist(), group.block_table.tolist(), strict=True
        ):
            assert length == spans[row][0] + 1
            width = -(-length // BLOCK_SIZE)
            assert PADDING_BLOCK not in table[:width]
            assert set(table[width:]) <= {PADDING_BLOCK}
        widths = [-(-length // BLOCK_SIZE) for length in group.lengths.tolist()]
        assert max(widths) <= max(4, min(widths) * MAX_PADDING_RATIO)


def test_no_two_tokens_of_a_step_share_a_slot() -> None:
    step = build(schedule([(0, 9), (4, 4), (11, 1), (0, 1), (30, 6)], 64))
    assert len(set(step.slots.tolist())) == step.input_ids.shape[1] == step.slots.shape[0]
    assert step.slots.dtype == torch.int64


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        build(Batch(scheduled=(), preempted=()))
