"""Weight matrices → the panels that tiles read (layouts: tiles.py)."""

from __future__ import annotations

import numpy as np
import torch

from inference_server.execution.native.tiles import GROUP, PANEL
from inference_server.loading.blocks import BlockMatrix


def pack_dense(weight: torch.Tensor) -> np.ndarray:
    """float32 or bfloat16 [rows, columns] → uint8 panels."""
    bits = weight.detach().contiguous()
    numbers = (bits.view(torch.uint16) if weight.dtype == torch.bfloat16 else bits.float()).numpy()
    panels = _panels(numbers)  # [panels, PANEL, columns]
    return _bytes(panels.transpose(0, 2, 1))


def pack_blocks(matrix: BlockMatrix) -> np.ndarray:
    """Blocks of 32 → uint8 panels."""
    groups = matrix.columns // GROUP
    codes = _panels(matrix.codes).reshape(-1, PANEL, groups, GROUP)
    parts = [_panel_halves(matrix.scales)]
    if matrix.bits == 4:
        if matrix.minimums is None:
            raise ValueError("blocks of 4 bits need their minimums")
        parts.append(_panel_halves(matrix.minimums))
        words = np.zeros((codes.shape[0], PANEL, groups, 4), dtype=np.uint32)
        pairs = codes.reshape(*words.shape, 4, 2)
        for nibble in range(4):
            for half in range(2):
                words |= pairs[..., nibble, half].astype(np.uint32) << np.uint32(4 * nibble + 16 * half)
    else:
        quads = codes.view(np.uint8).reshape(codes.shape[0], PANEL, groups, 8, 4)
        words = np.ascontiguousarray(quads[..., [0, 2, 1, 3]]).view(np.uint32)[..., 0]
    words = np.ascontiguousarray(words.transpose(0, 2, 3, 1))  # [panels, groups, chunk, PANEL]
    parts.append(words.view(np.uint8).reshape(codes.shape[0], groups, -1))
    return np.concatenate(parts, axis=2).reshape(-1)


def _panels(rows: np.ndarray) -> np.ndarray:
    """[rows, columns] → [panels, PANEL, columns], the last panel filled up with zeros."""
    missing = -rows.shape[0] % PANEL
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, rows.shape[1]), dtype=rows.dtype)])
    return rows.reshape(-1, PANEL, rows.shape[1])


def _panel_halves(values: np.ndarray) -> np.ndarray:
    """[rows, groups] → bytes [panels, groups, PANEL * 2]."""
    halves = np.ascontiguousarray(_panels(values.astype(np.float16)).transpose(0, 2, 1))
    return halves.view(np.uint8).reshape(*halves.shape[:2], PANEL * 2)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1)
