"""Quantizers of ours: near the weights, exact where they can be, and no worse than plain rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.loading.blocks import BLOCK_INPUTS, BlockMatrix, quantize_4_bits, quantize_8_bits

Floats = np.ndarray[Any, np.dtype[np.float32]]


@st.composite
def weights(draw: st.DrawFn) -> Floats:
    """Small matrices of many kinds: wide and narrow, shifted, sparse, with outliers, constant."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 4)) * BLOCK_INPUTS)
    values = random.standard_normal(shape) * draw(st.sampled_from([0.0, 1e-3, 0.05, 1.0, 300.0]))
    values += draw(st.sampled_from([0.0, 0.0, 0.5, -40.0]))
    values *= random.random(shape) < draw(st.sampled_from([1.0, 0.5, 0.05]))
    if draw(st.booleans()):
        values[0, :3] *= 50
    return values.astype(np.float32)


def relative_error(matrix: BlockMatrix, weight: Floats) -> float:
    """Root of the mean squared error, relative to the weights' own."""
    error = np.square(matrix.dequantize() - weight, dtype=np.float64).sum()
    return float(np.sqrt(error / np.square(weight, dtype=np.float64).sum()))


def rounded_range(weight: Floats) -> Floats:
    """Plain 4-bit rounding: the block's smallest weight is code 0, its largest 15."""
    blocks = weight.reshape(weight.shape[0], -1, BLOCK_INPUTS)
    low, high = blocks.min(axis=2, keepdims=True), blocks.max(axis=2, keepdims=True)
    minimum = low.astype(np.float16).astype(np.float32)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    steps = np.divide(blocks - minimum, scale, out=np.zeros_like(blocks), where=scale != 0)
    return (np.clip(np.rint(steps), 0, 15) * scale + minimum).reshape(weight.shape)


@given(weights())
def test_eight_bits_are_off_by_half_a_step_at_most(weight: Floats) -> None:
    matrix = quantize_8_bits(weight)
    assert np.abs(matrix.codes.astype(int)).max(initial=0) <= 127
    largest = np.abs(weight.reshape(weight.shape[0], -1, BLOCK_INPUTS)).max(axis=2)
    allowed = largest * (0.5 / 127 + 2**-10) + 1e-5  # half a step, and the scale's own rounding
    error = np.abs(matrix.dequantize() - weight).reshape(*largest.shape, BLOCK_INPUTS)
    assert (error <= allowed[..., None]).all()


@given(weights())
def test_four_bits_are_no_worse_than_rounding_the_range(weight: Floats) -> None:
    matrix = quantize_4_bits(weight)
    assert matrix.codes.max(initial=0) <= 15
    plain = np.square(rounded_range(weight) - weight, dtype=np.float64).sum()
    ours = np.square(matrix.dequantize() - weight, dtype=np.float64).sum()
    rounding = np.square(np.abs(weight).max(initial=0) * 2.0**-10, dtype=np.float64) * weight.size
    assert ours <= plain * 1.001 + rounding + 1e-9


def test_the_errors_on_bell_shaped_weights_are_what_the_formats_allow() -> None:
    weight = np.random.default_rng(1).standard_normal((256, 512)).astype(np.float32) * 0.05
    assert relative_error(quantize_8_bits(weight), weight) < 0.006
    assert relative_error(quantize_4_bits(weight), weight) < 0.08
    plain = np.sqrt(np.square(rounded_range(weight) - weight).sum() / np.square(weight).sum())
    assert relative_error(quantize_4_bits(weight), weight) < 0.94 * plain


@given(st.integers(0, 2**32 - 1))
def test_weights_that_lie_on_a_grid_of_sixteen_steps_come_back_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (3, 64), dtype=np.uint8)
    codes.reshape(3, -1, BLOCK_INPUTS)[:, :, :2] = (0, 15)
    scales = (2.0 ** random.integers(-8, 3, (3, 2))).astype(np.float16)
    grid = BlockMatrix(4, codes, scales, (scales * -7).astype(np.float16))
    np.testing.assert_array_equal(quantize_4_bits(grid.dequantize()).dequantize(), grid.dequantize())


def test_a_block_of_one_value_is_that_value_as_float16_has_it() -> None:
    weight = np.full((2, 32), 0.3, dtype=np.float32)
    weight[1] = 0
    assert np.array_equal(quantize_4_bits(weight).dequantize(), weight.astype(np.float16).astype(np.float32))
    assert not quantize_8_bits(weight).dequantize()[1].any()


def test_blocks_do_not_depend_on_their_neighbours() -> None:
    weight = np.random.default_rng(2).standard_normal((2100, 64)).astype(np.float32)
    for quantize in (quantize_4_bits, quantize_8_bits):
        whole, part = quantize(weight), quantize(weight[2000:])
        np.testing.assert_array_equal(whole.codes[2000:], part.codes)
        np.testing.assert_array_equal(whole.scales[2000:], part.scales)


@pytest.mark.parametrize("quantize", [quantize_4_bits, quantize_8_bits])
@pytest.mark.parametrize("bad", [np.full((1, 33), 1.0), np.full((1, 32), np.nan), np.full((1, 32), 1e9)])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_does_not_fit_is_refused(quantize: Any, bad: Floats) -> None:
    with pytest.raises(ValueError, match=r"multiple of 32|does not fit"):
        quantize(bad.astype(np.float32))
