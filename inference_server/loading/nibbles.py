"""Codes of 4 bits, two per byte: byte j of a block of 32 holds code j (low half) and code j + 16 (high half).

The order is ggml's, so that blocks of a GGUF file are copied as they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inference_server.loading.blocks import BLOCK_INPUTS

_BYTES = BLOCK_INPUTS // 2


def packed(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Codes 0…15 [rows, columns] → bytes [rows, columns / 2]."""
    halves = codes.reshape(codes.shape[0], -1, 2, _BYTES)
    high = np.left_shift(halves[:, :, 1], 4, dtype=np.uint8)
    return np.bitwise_or(halves[:, :, 0], high).reshape(codes.shape[0], -1)


def unpacked(packed_codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Bytes [rows, columns / 2] → codes 0…15 [rows, columns]."""
    rows = packed_codes.shape[0]
    blocks = packed_codes.reshape(rows, -1, _BYTES)
    codes = np.empty((rows, blocks.shape[1], 2, _BYTES), dtype=np.uint8)
    np.bitwise_and(blocks, 15, out=codes[:, :, 0])
    np.right_shift(blocks, 4, out=codes[:, :, 1])
    return codes.reshape(rows, -1)
