"""Tells a want of memory from other errors, on the host and on a device, without importing torch."""

from __future__ import annotations

import errno
import sys

_WORDS = ("can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a load or step failed for want of memory, on the host or on a device."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError):
        return True
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()  # torch's allocator for the host and safetensors' mapping have no class for it
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)
