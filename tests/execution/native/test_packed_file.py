"""Packed files: what was written is what is mapped, and what is not whole is not taken."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.execution.native.model import NUM_LAYER_FIELDS
from inference_server.execution.native.packed_file import PackedFile, PackedWriter

VECTORS = np.arange(7, dtype=np.float32)
LAYERS = np.arange(2 * NUM_LAYER_FIELDS, dtype=np.int64).reshape(2, -1)


def write(path: Path, arena: np.ndarray) -> PackedFile:
    writer = PackedWriter(path)
    half = arena.size // 2
    writer.write(half, arena[half:])
    writer.write(0, arena[:half])
    packed = writer.finish(arena.size, VECTORS, LAYERS)
    while not path.exists():
        time.sleep(0.001)  # a thread gives it its name
    return packed


@given(content=st.binary(min_size=1, max_size=5000))
def test_what_was_written_is_mapped_at_once_and_later(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("packed") / "m.weights"
    arena = np.frombuffer(content, dtype=np.uint8)
    written = write(path, arena)
    found = PackedFile.open(path, arena.size)
    assert found is not None
    for packed in (written, found):
        np.testing.assert_array_equal(packed.map_arena(), arena)
        np.testing.assert_array_equal(packed.vectors, VECTORS)
        np.testing.assert_array_equal(packed.layers, LAYERS)


@given(cut=st.integers(0, 400), flip=st.integers(0, 10_000))
def test_a_file_that_is_cut_short_or_changed_behind_the_arena_is_not_taken(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("packed") / "m.weights"
    write(path, np.zeros(64, dtype=np.uint8))
    whole = bytearray(path.read_bytes())
    if cut:
        path.write_bytes(whole[: max(0, len(whole) - cut)])
    else:
        whole[64 + flip % (len(whole) - 64)] ^= 1
        path.write_bytes(whole)
    assert PackedFile.open(path, 64) is None


def test_a_file_for_another_arena_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path / "m.weights", np.zeros(64, dtype=np.uint8))
    assert PackedFile.open(tmp_path / "m.weights", 128) is None
    assert PackedFile.open(tmp_path / "absent", 64) is None


def test_writers_of_one_file_on_several_machines_do_not_meet(tmp_path: Path) -> None:
    path, arena = tmp_path / "m.weights", np.full(64, 7, dtype=np.uint8)
    first = PackedWriter(path)
    first.write(0, arena[:32])
    second = PackedWriter(path)  # of another container, where processes have the same numbers
    first.write(32, arena[32:])
    packed = first.finish(arena.size, VECTORS, LAYERS)
    second.write(0, arena)
    second.finish(arena.size, VECTORS, LAYERS)
    np.testing.assert_array_equal(packed.map_arena(), arena)


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    writer = PackedWriter(tmp_path / "m.weights")
    writer.write(0, np.ones(4, dtype=np.uint8))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_mapping_is_private_and_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.weights"
    packed = write(path, np.ones(64, dtype=np.uint8))
    first = packed.map_arena()
    first[0] = 5
    path.unlink()
    assert packed.map_arena()[0] == 1
