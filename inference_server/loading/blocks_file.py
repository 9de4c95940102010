"""`blocks.safetensors`: matrices in blocks of 32, beside the bfloat16 weights of a converted GGUF file.

Per matrix, under its name in the checkpoint: NAME.codes (int8 [rows, columns], or uint8 [rows, columns / 2]
with two codes of 4 bits per byte, see `nibbles.py`), NAME.scales and, for 4 bits, NAME.minimums (float16
[rows, columns / 32]). Knows no GGUF and no kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference_server.checkpoints.block_headers import BLOCKS_NAME, CODES, MINIMUMS, SCALES, block_bits
from inference_server.errors import FetchFailed
from inference_server.loading.blocks import BLOCK_INPUTS, BlockMatrix
from inference_server.loading.nibbles import packed, unpacked


class BlocksFile(Mapping[str, BlockMatrix]):
    """The matrices of one folder. Each is read when it is asked for, and belongs to who asked."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._bits = block_bits(folder)
        self._file: Any = safe_open(folder / BLOCKS_NAME, framework="np") if self._bits else None

    def __getitem__(self, name: str) -> BlockMatrix:
        bits = self._bits[name]
        codes, scales = self._file.get_tensor(name + CODES), self._tensor(name + SCALES)
        matrix = (
            BlockMatrix(8, codes, scales, None)
            if bits == 8
            else BlockMatrix(4, unpacked(codes), scales, self._tensor(name + MINIMUMS))
        )
        _check(name, matrix)
        return matrix

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def _tensor(self, key: str) -> Any:
        try:
            return self._file.get_tensor(key)
        except Exception as error:  # safetensors' own class has no public name that all versions share
            raise FetchFailed(f"{BLOCKS_NAME} is damaged: it lacks {key}") from error


def read_blocks(folder: Path) -> BlocksFile:
    """The matrices that `folder` holds in blocks, by their names in the checkpoint; often none.

    Raises:
        FetchFailed: the file is damaged.
    """
    return BlocksFile(folder)


def write_blocks(folder: Path, matrices: Mapping[str, BlockMatrix]) -> None:
    """Write the file, or nothing where there are no matrices."""
    from safetensors.numpy import save_file

    if not matrices:
        return
    tensors: dict[str, Any] = {}
    for name, matrix in matrices.items():
        tensors[name + CODES] = matrix.codes if matrix.bits == 8 else packed(matrix.codes.view(np.uint8))
        tensors[name + SCALES] = matrix.scales
        if matrix.minimums is not None:
            tensors[name + MINIMUMS] = matrix.minimums
    save_file(tensors, folder / BLOCKS_NAME)


def _check(name: str, matrix: BlockMatrix) -> None:
    expected = (matrix.rows, matrix.columns // BLOCK_INPUTS)
    parts = [matrix.scales] if matrix.minimums is None else [matrix.scales, matrix.minimums]
    if matrix.columns % BLOCK_INPUTS or any(part.shape != expected for part in parts):
        raise FetchFailed(f"{BLOCKS_NAME} is damaged: {name} does not fit together")
