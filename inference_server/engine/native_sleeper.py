"""Sleep of a model on the native CPU kernels: its weights are a mapped file, and need no copy to come back.

The process, its compiled kernels and its tables stay. Owner: the engine.
"""

from __future__ import annotations

from inference_server.engine.process_memory import give_back_freed_memory, resident_bytes
from inference_server.execution.native.packed_file import PackedFile
from inference_server.execution.native.runner import NativeRunner
from inference_server.types import MemoryReport


class NativeSleeper:
    """A `Sleeper` over a runner whose arena is mapped from `packed`."""

    def __init__(self, runner: NativeRunner, packed: PackedFile) -> None:
        self._runner = runner
        self._packed = packed

    def sleep(self) -> None:
        """See `Sleeper.sleep`."""
        self._runner.release()
        give_back_freed_memory()

    def wake(self) -> None:
        """See `Sleeper.wake`."""
        self._runner.restore(self._packed.map_arena())

    def memory(self) -> MemoryReport:
        """See `Sleeper.memory`."""
        return native_memory(self._runner)


def native_memory(runner: NativeRunner) -> MemoryReport:
    """What a runner holds now."""
    return MemoryReport(
        weights_bytes=runner.weights_bytes,
        kv_cache_bytes=runner.kv_cache_bytes,
        workspace_bytes=runner.workspace_bytes,
        rss_bytes=resident_bytes(),
    )
