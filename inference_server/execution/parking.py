"""Takes a loaded model's bytes off its device into main memory and back, quantized as they are.

Works on storages: a tensor keeps its shape, its views and whoever refers to it while its storage is empty, so
that neither the model nor bitsandbytes' states need be known. Owner: the sleeper.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

logger = logging.getLogger(__name__)


class HostBuffer:
    """Main memory for a copy, page-locked where CUDA allows it, so that copies run at the bus's full rate."""

    def __init__(self, num_bytes: int, *, locks_pages: bool) -> None:
        """Raises whatever the allocation raises."""
        self.bytes = torch.empty(num_bytes, dtype=torch.uint8)
        self._is_locked = locks_pages and num_bytes > 0 and self._lock()

    def free(self) -> None:
        """Give the memory back."""
        if self._is_locked:
            _cuda_runtime().cudaHostUnregister(self.bytes.data_ptr())
            self._is_locked = False
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def _lock(self) -> bool:
        error = _cuda_runtime().cudaHostRegister(self.bytes.data_ptr(), self.bytes.numel(), 0)
        if int(error):
            logger.warning("main memory for a sleeping model cannot be page-locked (CUDA error %d)", error)
        return not int(error)


class Parking:
    """Storages that are on the device, or empty with their bytes in main memory."""

    def __init__(self, storages: Sequence[torch.UntypedStorage], *, locks_pages: bool) -> None:
        """`storages` are distinct and can be resized. `locks_pages`: they are CUDA's."""
        self._storages = tuple(storages)
        self._sizes = tuple(storage.nbytes() for storage in storages)
        self._locks_pages = locks_pages
        self._copy: HostBuffer | None = None

    @property
    def is_parked(self) -> bool:
        """Whether the bytes are in main memory."""
        return self._copy is not None

    @property
    def num_bytes(self) -> int:
        """Bytes of all storages."""
        return sum(self._sizes)

    def park(self) -> None:
        """Take the bytes off the device. If that fails, they are all still there."""
        if self._copy is not None:
            return
        copy = HostBuffer(self.num_bytes, locks_pages=self._locks_pages)
        for storage, part in zip(self._storages, self._parts(copy), strict=True):
            part.copy_(_as_bytes(storage), non_blocking=self._locks_pages)
        if self._locks_pages:
            torch.cuda.synchronize()
        for storage in self._storages:
            storage.resize_(0)
        self._copy = copy

    def bring_back(self) -> None:
        """Put the bytes onto the device again. If that fails, they are still parked."""
        if self._copy is None:
            return
        try:
            for storage, part in zip(self._storages, self._parts(self._copy), strict=True):
                storage.resize_(part.numel())
                _as_bytes(storage).copy_(part, non_blocking=self._locks_pages)
            if self._locks_pages:
                torch.cuda.synchronize()
        except Exception:
            for storage in self._storages:
                storage.resize_(0)
            raise
        self._copy.free()
        self._copy = None

    def _parts(self, copy: HostBuffer) -> Iterator[torch.Tensor]:
        start = 0
        for size in self._sizes:
            yield copy.bytes[start : start + size]
            start += size


def _cuda_runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
