"""How many parameters a prepared folder's model has, as people write it. Reads headers only."""

from __future__ import annotations

from pathlib import Path

from inference_server.checkpoints.headers import read_checkpoint
from inference_server.errors import FetchFailed

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


def parameter_size(folder: Path) -> str:
    """E.g. "134.5M"; empty if the weights are packed or absent, so that their headers do not say it."""
    try:
        tensors = read_checkpoint(folder).values()
    except FetchFailed:
        return ""
    if not tensors or not all(tensor.dtype in _PLAIN for tensor in tensors):
        return ""
    count = sum(tensor.num_elements for tensor in tensors)
    unit, size = ("B", count / 1e9) if count >= 1e9 else ("M", count / 1e6)
    return f"{size:.1f}{unit}"
