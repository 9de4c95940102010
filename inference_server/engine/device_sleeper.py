"""Sleep of a model on a GPU: weights go to main memory, everything else on the device is given up.

A wake copies the weights back and captures the decode graphs again, which hold addresses. Owner: the engine.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from inference_server.engine.process_memory import resident_bytes
from inference_server.execution.cuda_runner import CudaRunner
from inference_server.execution.kv_cache import KVCache
from inference_server.execution.parking import Parking
from inference_server.types import MemoryReport


def free_device_cache() -> None:
    """Let torch's allocator return to the driver what nobody holds."""
    gc.collect()
    torch.cuda.empty_cache()


class DeviceSleeper:
    """A `Sleeper` over a runner, its KV cache and its weights. `free_cache` ends each sleep."""

    def __init__(
        self,
        runner: CudaRunner,
        cache: KVCache,
        weights: Parking,
        *,
        free_cache: Callable[[], None] = free_device_cache,
    ) -> None:
        self._runner = runner
        self._cache = cache
        self._weights = weights
        self._free_cache = free_cache

    def sleep(self) -> None:
        """See `Sleeper.sleep`."""
        self._weights.park()
        self._runner.release()
        self._cache.release()
        self._free_cache()

    def wake(self) -> None:
        """See `Sleeper.wake`."""
        try:
            self._weights.bring_back()
            self._cache.restore()
            self._runner.restore()
        except Exception:
            self.sleep()
            raise

    def memory(self) -> MemoryReport:
        """See `Sleeper.memory`; bytes on the device."""
        return MemoryReport(
            weights_bytes=0 if self._weights.is_parked else self._weights.num_bytes,
            kv_cache_bytes=self._cache.held_bytes,
            workspace_bytes=0,
            rss_bytes=resident_bytes(),
        )
