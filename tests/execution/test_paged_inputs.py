"""Batches become rows ordered by kind, padded heads, regions and sources of carried tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference_server.execution.block_tables import BlockTables
from inference_server.execution.paged_inputs import HostStep, Kind, PagedInputs, paged_step
from inference_server.execution.upload import upload
from inference_server.scheduling.batch import Batch, ScheduledSequence
from tests.execution.paged import BLOCK_SIZE, CPU, make_sequence, schedule

SPANS = [(0, 9), (5, 1), (0, 3), (4, 6), (0, 12), (11, 1)]


def plan(batch: Batch, sampled: dict[str, int] | None = None, cold_from: int | None = 8) -> HostStep:
    tables = BlockTables(max_rows=8, width=16, device=CPU)
    return PagedInputs(tables, block_size=BLOCK_SIZE, cold_from=cold_from).plan(batch, sampled or {})


def test_rows_are_decodes_then_chunks_then_cold_chunks() -> None:
    batch = schedule(SPANS, 64)
    host = plan(batch)
    assert host.regions == (
        (Kind.DECODE, 0, 2, 0, 1),
        (Kind.CHUNK, 2, 4, 2, 6),
        (Kind.COLD, 4, 6, 11, 12),
    )
    assert host.query_starts.tolist() == [0, 1, 2, 0, 3, 9, 0, 9, 21]
    # In the order of the batch: the last rows of the sequences.
    assert host.sample_rows.tolist() == [19, 0, 4, 10, 31, 1]
    ids, positions, slots = host.head[: 3 * 32].reshape(3, 32)
    for item in batch.scheduled:
        for position in range(item.start, item.start + item.num_new_tokens):
            slot = item.sequence.block_ids[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            (row,) = np.flatnonzero(slots == slot)
            assert positions[row] == position
            assert ids[row] == item.sequence.token_ids[position]
    lengths = host.head[3 * 32 : 3 * 32 + 6]
    assert lengths.tolist() == [6, 12, 3, 10, 9, 12]


def test_without_flash_attention_cold_chunks_are_chunks() -> None:
    host = plan(schedule(SPANS, 64), cold_from=None)
    assert [region[:3] for region in host.regions] == [(Kind.DECODE, 0, 2), (Kind.CHUNK, 2, 6)]


def test_an_uploaded_step_has_its_regions_in_place() -> None:
    host = plan(schedule(SPANS, 64))
    (head, _, rows, starts, _, _), _ = upload([host.head, *host.arrays()], np.empty(0), CPU)
    step = paged_step(host, head, head[:32], starts, rows, torch.zeros(8, 16, dtype=torch.int32))
    spans = [(r.first_row, r.last_row) for r in (step.decodes, step.chunks, step.cold) if r is not None]
    assert spans == [(0, 2), (2, 11), (11, 32)]
    assert step.cold is not None
    assert step.cold.query_starts.tolist() == [0, 9, 21]
    assert step.cold.kv_lengths.tolist() == [9, 12]
    assert step.input_ids.shape == step.position_ids.shape == (1, 32)


def test_a_decode_is_padded_with_rows_that_touch_nothing() -> None:
    host = plan(schedule([(5, 1), (2, 1), (9, 1)], 64))
    assert host.is_decode
    assert host.samples_every_row
    ids, positions, slots, lengths, rows = host.padded_head(5).reshape(5, 5)
    assert positions.tolist() == [5, 2, 9, 0, 0]
    assert lengths.tolist() == [6, 3, 10, 0, 0]
    assert slots[3:].tolist() == [-1, -1]
    assert (slots[:3] >= 0).all()
    assert ids[3:].tolist() == rows[3:].tolist() == [0, 0]


def test_a_sequence_that_does_not_sample_makes_no_row() -> None:
    items = schedule([(5, 1), (2, 1)], 64).scheduled
    silent = ScheduledSequence(items[0].sequence, 5, 1, False)
    host = plan(Batch(scheduled=(silent, items[1]), preempted=()))
    assert host.is_decode
    assert not host.samples_every_row
    assert host.sample_rows.tolist() == [1]


def test_carried_tokens_come_from_the_rows_that_choose_them() -> None:
    items = list(schedule([(5, 1), (2, 1), (0, 4)], 64).scheduled)
    carried = make_sequence([1, 2, 3], name="carried")
    carried.block_ids = [60]
    items.insert(1, ScheduledSequence(carried, 3, 1, True, carries=True))
    batch = Batch(scheduled=tuple(items), preempted=())
    host = plan(batch, {"carried": 4, "r0": 0})
    assert host.sources.tolist() == [-1, 4, -1, -1, -1, -1, -1]
    assert plan(Batch(scheduled=tuple(items[:1]), preempted=())).sources.tolist() == []
    with pytest.raises(ValueError, match="carries"):
        plan(batch, {"r0": 0})


def test_drafts_are_rows_to_be_sampled_too() -> None:
    sequence = make_sequence([1, 2, 3, 4])
    sequence.block_ids = [5, 6]
    item = ScheduledSequence(sequence, 3, 3, True, draft_token_ids=(7, 8))
    host = plan(Batch(scheduled=(item,), preempted=()))
    assert host.head[:3].tolist() == [4, 7, 8]
    assert host.sample_rows.tolist() == [0, 1, 2]
    assert not host.is_decode


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        plan(Batch(scheduled=(), preempted=()))


def test_an_upload_gives_back_what_went_in() -> None:
    arrays = [np.arange(3, dtype=np.int32), np.empty(0, dtype=np.int32), np.array([7], dtype=np.int32)]
    views, floats = upload(arrays, np.array([0.1, 2.0**60]), CPU)
    assert [view.tolist() for view in views] == [[0, 1, 2], [], [7]]
    assert floats.tolist() == [0.1, 2.0**60]
    assert floats.dtype == torch.float64
