"""What is written to a blocks file comes back, packed tightly on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from inference_server.checkpoints.block_headers import BLOCKS_NAME, block_bits
from inference_server.errors import FetchFailed
from inference_server.loading.blocks import BlockMatrix, quantize_4_bits, quantize_8_bits
from inference_server.loading.blocks_file import read_blocks, write_blocks
from inference_server.loading.nibbles import packed, unpacked


def matrices(seed: int = 0) -> dict[str, BlockMatrix]:
    random = np.random.default_rng(seed)
    weights = [random.standard_normal((rows, 96)).astype(np.float32) for rows in (5, 16)]
    return {"a.weight": quantize_4_bits(weights[0]), "b.weight": quantize_8_bits(weights[1])}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = matrices()
    write_blocks(tmp_path, written)
    found = read_blocks(tmp_path)
    assert found.keys() == written.keys()
    for name, matrix in written.items():
        assert found[name].bits == matrix.bits
        np.testing.assert_array_equal(found[name].codes, matrix.codes)
        np.testing.assert_array_equal(found[name].dequantize(), matrix.dequantize())
    assert block_bits(tmp_path) == {"a.weight": 4, "b.weight": 8}


def test_a_weight_takes_five_bits_or_eight_and_a_half(tmp_path: Path) -> None:
    write_blocks(tmp_path, matrices())
    sizes = {name: tensor.nbytes for name, tensor in load_file(tmp_path / BLOCKS_NAME).items()}
    four = sum(size for name, size in sizes.items() if name.startswith("a."))
    eight = sum(size for name, size in sizes.items() if name.startswith("b."))
    assert (four * 8, eight * 8) == (5 * 5 * 96, 8.5 * 16 * 96)


@given(st.integers(1, 4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_two_codes_share_a_byte_and_come_back(rows: int, blocks: int, random: object) -> None:
    codes = np.frombuffer(
        bytes(random.randrange(16) for _ in range(rows * blocks * 32)),  # type: ignore[attr-defined]
        dtype=np.uint8,
    ).reshape(rows, blocks * 32)
    assert packed(codes).shape == (rows, blocks * 16)
    np.testing.assert_array_equal(unpacked(packed(codes)), codes)


def test_a_folder_without_blocks_has_none(tmp_path: Path) -> None:
    write_blocks(tmp_path, {})
    assert not (tmp_path / BLOCKS_NAME).exists()
    assert dict(read_blocks(tmp_path)) == {}
    assert block_bits(tmp_path) == {}


def test_a_matrix_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    write_blocks(tmp_path, matrices())
    tensors = load_file(tmp_path / BLOCKS_NAME)
    del tensors["a.weight.minimums"]
    tensors["b.weight.scales"] = tensors["b.weight.scales"][:, :2].copy()
    save_file(tensors, tmp_path / BLOCKS_NAME)
    with pytest.raises(FetchFailed, match=r"lacks a\.weight\.minimums"):
        read_blocks(tmp_path)["a.weight"]
    with pytest.raises(FetchFailed, match=r"b\.weight does not fit together"):
        read_blocks(tmp_path)["b.weight"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 100))
def test_a_file_cut_short_is_refused(tmp_path: Path, missing: int) -> None:
    write_blocks(tmp_path, matrices())
    data = (tmp_path / BLOCKS_NAME).read_bytes()
    (tmp_path / BLOCKS_NAME).write_bytes(data[: len(data) - 1 - missing])
    with pytest.raises(FetchFailed):
        read_blocks(tmp_path)
