"""The device's block table is what the sequences hold, whatever they went through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_server.execution.block_tables import BlockTables
from inference_server.scheduling.sequence import Sequence
from tests.execution.paged import CPU, make_sequence

MAX_ROWS, WIDTH = 3, 5


def make_tables() -> BlockTables:
    return BlockTables(max_rows=MAX_ROWS, width=WIDTH, device=CPU)


def step(tables: BlockTables, sequences: list[Sequence]) -> int:
    """One step; returns how many entries it sent. Afterwards the device holds every sequence's blocks."""
    rows = tables.assign(sequences)
    places, values = tables.pending()
    tables.apply(torch.from_numpy(places), torch.from_numpy(values))
    assert len(set(rows)) == len(rows)
    for row, sequence in zip(rows, sequences, strict=True):
        assert tables.device[row, : len(sequence.block_ids)].tolist() == sequence.block_ids
    assert torch.equal(torch.from_numpy(tables.host), tables.device)
    return len(places)


def test_only_new_blocks_are_sent() -> None:
    tables, sequence = make_tables(), make_sequence([1])
    sequence.block_ids = [7, 3]
    assert step(tables, [sequence]) == 2
    assert step(tables, [sequence]) == 0
    sequence.block_ids.append(9)
    assert step(tables, [sequence]) == 1


def test_too_many_sequences_and_too_many_blocks_are_refused() -> None:
    tables = make_tables()
    with pytest.raises(ValueError, match="more than 3 sequences"):
        tables.assign([make_sequence([1], name=f"r{n}") for n in range(4)])
    tables.reset()
    long = make_sequence([1])
    long.block_ids = list(range(6))
    with pytest.raises(ValueError, match="6 blocks"):
        tables.assign([long])


def test_after_a_reset_everything_is_sent_again() -> None:
    tables, sequence = make_tables(), make_sequence([1])
    sequence.block_ids = [7, 3]
    tables.assign([sequence])
    tables.reset()  # the step failed before the device had it
    assert step(tables, [sequence]) == 2


blocks = st.lists(st.integers(0, 99), max_size=WIDTH)


@given(st.lists(st.dictionaries(st.integers(0, 5), blocks, max_size=MAX_ROWS), max_size=12))
def test_the_device_holds_what_the_sequences_hold(steps: list[dict[int, list[int]]]) -> None:
    """Each step names the sequences in its batch and what they hold by then, grown, shrunk or replaced."""
    tables = make_tables()
    sequences = {number: make_sequence([1], name=f"r{number}") for number in range(6)}
    for batch in steps:
        for number, held in batch.items():
            sequences[number].block_ids = list(held)
        step(tables, [sequences[number] for number in batch])
