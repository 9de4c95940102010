"""Weights in blocks of 32 inputs, the one quantized form that our CPU kernels compute with.

A block holds 32 neighbouring inputs of one output. With 8 bits a weight is `scale * code`, with 4 bits
`scale * code + minimum`. Both are supersets of what GGUF's Q8_0, Q4_0 and Q4_1 hold, so such tensors are
taken over exactly. Knows numpy only: neither files nor kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_INPUTS = 32
_LARGEST_8, _LARGEST_4 = 127, 15  # codes
# Rounds of fitting scale and minimum to the codes; each takes the error down, the fourth by 0.4 %.
_FITTING_ROUNDS = 4
_BLOCKS_AT_ONCE = 1024  # float32 numbers that stay in the cache between numpy's passes


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """One weight matrix [rows, columns]; columns is a multiple of 32.

    codes [rows, columns]: int8 for 8 bits, uint8 of 0…15 for 4; scales, minimums float16 [rows, columns / 32]
    (minimums for 4 bits only).
    """

    bits: int
    codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    minimums: npt.NDArray[np.float16] | None

    @property
    def rows(self) -> int:
        """Outputs."""
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        """Inputs."""
        return int(self.codes.shape[1])

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 [rows, columns]."""
        blocks = self.codes.astype(np.float32).reshape(self.rows, -1, BLOCK_INPUTS)
        values = blocks * self.scales.astype(np.float32)[..., None]
        if self.minimums is not None:
            values += self.minimums.astype(np.float32)[..., None]
        return values.reshape(self.rows, self.columns)


def quantize_8_bits(weight: npt.NDArray[np.float32]) -> BlockMatrix:
    """Symmetric 8 bits: each block's largest magnitude becomes ±127.

    Raises:
        ValueError: the columns are no multiple of 32, or a weight is not finite or too large for float16.
    """
    codes = np.empty(weight.shape, dtype=np.int8)
    scales = np.empty((weight.shape[0], weight.shape[1] // BLOCK_INPUTS), dtype=np.float16)

    def quantize(blocks: npt.NDArray[np.float32], part: slice) -> None:
        chosen = _halves(np.abs(blocks).max(axis=0) / np.float32(_LARGEST_8))
        found = blocks * _inverse(chosen.astype(np.float32))
        np.clip(np.rint(found, out=found), -_LARGEST_8, _LARGEST_8, out=found)
        codes.reshape(-1, BLOCK_INPUTS)[part] = found.astype(np.int8).T
        scales.reshape(-1)[part] = chosen

    _for_parts(weight, quantize)
    return BlockMatrix(8, codes, scales, None)


def quantize_4_bits(weight: npt.NDArray[np.float32]) -> BlockMatrix:
    """Asymmetric 4 bits: from a block's range on, nearest codes and the best line through them in turns.

    That is Lloyd's algorithm (IEEE Trans. Inf. Theory 28(2)) on an equidistant grid; no round adds error.

    Raises:
        ValueError: as `quantize_8_bits`.
    """
    codes = np.empty(weight.shape, dtype=np.uint8)
    shape = (weight.shape[0], weight.shape[1] // BLOCK_INPUTS)
    scales, minimums = np.empty(shape, dtype=np.float16), np.empty(shape, dtype=np.float16)

    def quantize(blocks: npt.NDArray[np.float32], part: slice) -> None:
        low, high = blocks.min(axis=0), blocks.max(axis=0)
        scale, minimum = (high - low) / np.float32(_LARGEST_4), low
        for _ in range(_FITTING_ROUNDS):
            scale, minimum = _fitted(blocks, _nearest(blocks, scale, minimum), scale, minimum)
        chosen, offset = _halves(scale), _halves(minimum)
        found = _nearest(blocks, chosen.astype(np.float32), offset.astype(np.float32))
        codes.reshape(-1, BLOCK_INPUTS)[part] = found.astype(np.uint8).T
        scales.reshape(-1)[part], minimums.reshape(-1)[part] = chosen, offset

    _for_parts(weight, quantize)
    return BlockMatrix(4, codes, scales, minimums)


def _nearest(
    blocks: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], minimum: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The codes 0…15 whose values are nearest to the weights."""
    inverse = _inverse(scale)
    codes = blocks * inverse
    codes -= minimum * inverse
    return np.clip(np.rint(codes, out=codes), 0, _LARGEST_4, out=codes)


def _fitted(
    blocks: npt.NDArray[np.float32],
    codes: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    minimum: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scale and minimum of the least squared error for these codes; the old ones where all are equal."""
    sums, totals = codes.sum(axis=0), blocks.sum(axis=0)
    spread = BLOCK_INPUTS * np.square(codes).sum(axis=0) - sums * sums
    varies = spread > 0
    slope = BLOCK_INPUTS * (codes * blocks).sum(axis=0) - sums * totals
    new_scale = np.divide(slope, spread, out=scale.copy(), where=varies)
    return new_scale, np.where(varies, (totals - new_scale * sums) / BLOCK_INPUTS, minimum)


def _for_parts(
    weight: npt.NDArray[np.float32], work: Callable[[npt.NDArray[np.float32], slice], None]
) -> None:
    """`work(blocks, part)` for a few blocks at a time; `part` is where they lie among all blocks.

    Blocks come as columns, [32, blocks]: numpy adds up rows much faster than neighbours.
    """
    if weight.shape[1] % BLOCK_INPUTS:
        raise ValueError(f"{weight.shape[1]} inputs are no multiple of {BLOCK_INPUTS}")
    blocks = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, BLOCK_INPUTS)
    for first in range(0, blocks.shape[0], _BLOCKS_AT_ONCE):
        part = slice(first, first + _BLOCKS_AT_ONCE)
        work(np.ascontiguousarray(blocks[part].T), part)


def _inverse(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / scale, and 0 where the scale is 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _halves(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    if not np.all(np.abs(values) <= np.finfo(np.float16).max):
        raise ValueError("a block's scale does not fit in float16")
    return values.astype(np.float16)
