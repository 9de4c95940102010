"""Weights in blocks of 32 inputs, the one quantized form that our CPU kernels compute with.

A block holds 32 neighbouring inputs of one output. With 8 bits a weight is `scale * code`, with 4 bits
`scale * code + minimum`. Both are supersets of what GGUF's Q8_0, Q4_0 and Q4_1 hold, so such tensors are
taken over exactly. Knows numpy only: neither files nor kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_INPUTS = 32
_SHRINKS = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # how far a 4-bit block's range is narrowed, at most


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
        ValueError: the columns are no multiple of 32, or a weight is too large for a float16 scale.
    """
    blocks = _blocks(weight)
    scales = _halves(np.abs(blocks).max(axis=2) / 127.0)
    steps = scales.astype(np.float32)[..., None]
    codes = np.rint(np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0))
    return BlockMatrix(8, np.clip(codes, -127, 127).astype(np.int8).reshape(weight.shape), scales, None)


def quantize_4_bits(weight: npt.NDArray[np.float32]) -> BlockMatrix:
    """Asymmetric 4 bits; per block the range, shrunk in steps, whose squared error is the smallest.

    Raises:
        ValueError: as `quantize_8_bits`.
    """
    blocks = _blocks(weight)
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    best_error = np.full(low.shape, np.inf, dtype=np.float32)
    best_scale, best_minimum = np.zeros(low.shape, np.float16), np.zeros(low.shape, np.float16)
    codes = np.zeros(blocks.shape, dtype=np.uint8)
    for shrink in _SHRINKS:
        middle, half = (high + low) / 2, (high - low) / 2 * shrink
        scale, minimum = _halves(half * 2 / 15), _halves(middle - half)
        steps, offset = scale.astype(np.float32)[..., None], minimum.astype(np.float32)[..., None]
        tried = np.divide(blocks - offset, steps, out=np.zeros_like(blocks), where=steps > 0)
        tried = np.clip(np.rint(tried), 0, 15)
        error = np.square(tried * steps + offset - blocks).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_minimum = (
            np.where(better, scale, best_scale),
            np.where(better, minimum, best_minimum),
        )
        codes = np.where(better[..., None], tried.astype(np.uint8), codes)
    return BlockMatrix(4, codes.reshape(weight.shape), best_scale, best_minimum)


def _blocks(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    rows, columns = weight.shape
    if columns % BLOCK_INPUTS:
        raise ValueError(f"{columns} inputs are no multiple of {BLOCK_INPUTS}")
    return np.ascontiguousarray(weight, dtype=np.float32).reshape(rows, -1, BLOCK_INPUTS)


def _halves(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    if not np.all(np.abs(values) <= np.finfo(np.float16).max):
        raise ValueError("a block's scale does not fit in float16")
    return values.astype(np.float16)
