"""The tensors of a GGUF file that are stored in blocks of 32, taken over without any loss.

Knows the layouts of Q4_0, Q4_1 and Q8_0 (ggml-common.h: block_q4_0, block_q4_1, block_q8_0) and numpy; knows
neither names of models nor other types of tensors.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference_server.checkpoints.gguf import GgufTensor
from inference_server.loading.blocks import BLOCK_INPUTS, BlockMatrix
from inference_server.loading.nibbles import unpacked

Q4_0, Q4_1, Q8_0 = 2, 3, 8  # ggml's numbers of the types
_HALF_BLOCK = BLOCK_INPUTS // 2  # bytes of a block's 4-bit codes, laid out as `nibbles.py` has them
_BLOCK_TYPES: dict[int, np.dtype[np.void]] = {
    Q4_0: np.dtype([("scale", "<f2"), ("codes", "u1", _HALF_BLOCK)]),
    Q4_1: np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", _HALF_BLOCK)]),
    Q8_0: np.dtype([("scale", "<f2"), ("codes", "i1", BLOCK_INPUTS)]),
}


def is_in_blocks(tensor: GgufTensor) -> bool:
    """Whether the tensor is a matrix in blocks of 32 that `read_blocks` understands."""
    return tensor.kind in _BLOCK_TYPES and len(tensor.shape) == 2 and tensor.shape[1] % BLOCK_INPUTS == 0


@contextmanager
def mapped(gguf: Path) -> Iterator[mmap.mmap]:
    """The file's bytes."""
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def read_block_tensor(data: mmap.mmap, tensor: GgufTensor) -> BlockMatrix:
    """The matrix of a tensor for which `is_in_blocks` holds; copies, so that `data` can be closed.

    Raises:
        ValueError: the file ends before the tensor does, or a minimum does not fit in float16.
    """
    rows, columns = tensor.shape
    kind = _BLOCK_TYPES[tensor.kind]
    num_blocks = rows * columns // BLOCK_INPUTS
    if tensor.start + num_blocks * kind.itemsize > len(data):
        raise ValueError("a tensor lies beyond the end of the file")
    raw = data[tensor.start : tensor.start + num_blocks * kind.itemsize]
    blocks = np.frombuffer(raw, dtype=kind).reshape(rows, -1)
    scales = blocks["scale"].copy()
    if tensor.kind == Q8_0:
        return BlockMatrix(8, _flat(blocks["codes"]), scales, None)
    codes = unpacked(_flat(blocks["codes"]))
    if tensor.kind == Q4_1:
        return BlockMatrix(4, codes, scales, blocks["minimum"].copy())
    return BlockMatrix(4, codes, scales, _minimums_of_centred(scales))


def _minimums_of_centred(scales: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """Q4_0 counts its codes from -8: exact, as times 8 only moves the exponent."""
    minimums = scales.astype(np.float32) * np.float32(-8)
    if not np.all(np.abs(minimums) <= np.finfo(np.float16).max):
        raise ValueError("a block's minimum does not fit in float16")
    return minimums.astype(np.float16)


def _flat(codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[rows, blocks, bytes] → contiguous [rows, all bytes]."""
    return codes.copy().reshape(codes.shape[0], -1)
