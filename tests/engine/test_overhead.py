"""What a process holds beside weights and KV cache, from fakes of /proc and NVML, and for real."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inference_server.engine.assembly import build_text_engine
from inference_server.engine.overhead import cpu_overhead, driver_bytes, measure_overhead
from inference_server.engine.process_memory import (
    ProcessMemory,
    anonymous_bytes,
    process_memory,
    reset_peak,
    touched_bytes,
)
from inference_server.types import MeasuredOverhead
from tests.engine.reference import engine_spec

MIB = 1024 * 1024


def test_the_peak_is_private_memory_and_what_the_resident_set_once_had_more(tmp_path: Path) -> None:
    (tmp_path / "smaps_rollup").write_text("1000-2000 ---p [rollup]\nRss: 900 kB\nPrivate_Dirty: 400 kB\n")
    (tmp_path / "status").write_text("VmHWM:\t1000 kB\nVmRSS:\t900 kB\n")
    assert process_memory(tmp_path) == ProcessMemory(400 * 1024, 500 * 1024)


def test_a_kernel_that_does_not_tell_is_no_error(tmp_path: Path) -> None:
    assert process_memory(tmp_path) is None
    assert not reset_peak(tmp_path / "absent")


def test_memory_counts_as_touched_page_by_page() -> None:
    with mmap.mmap(-1, 64 * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        view = np.frombuffer(memory, dtype=np.uint8)
        region = (view.ctypes.data, view.nbytes)
        assert touched_bytes([region]) == 0
        memory[0] = memory[5 * mmap.PAGESIZE] = 1
        assert touched_bytes([region]) == 2 * mmap.PAGESIZE
        del view


def test_mapped_files_are_told_from_memory_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(4 * mmap.PAGESIZE))
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    ours = np.ones(3 * MIB, dtype=np.uint8)
    regions = [(mapped.ctypes.data, mapped.nbytes), (ours.ctypes.data, ours.nbytes)]
    assert anonymous_bytes(regions) == ours.nbytes


def test_the_workspace_is_what_the_largest_step_adds_to_the_context() -> None:
    found = cpu_overhead(ProcessMemory(100, 100), ProcessMemory(120, 150), kv_cache_bytes=1000)
    assert found == MeasuredOverhead(context_bytes=100, workspace_bytes=50)


def test_a_load_that_took_more_for_a_moment_counts_beyond_the_kv_cache() -> None:
    loaded, stepped = ProcessMemory(100, 1400), ProcessMemory(120, 150)
    assert cpu_overhead(loaded, stepped, kv_cache_bytes=1000).workspace_bytes == 300
    assert cpu_overhead(loaded, stepped, kv_cache_bytes=1300).workspace_bytes == 50


def test_a_real_engine_is_measured_and_its_counters_stay_at_zero(tiny_llama: Path) -> None:
    spec = engine_spec(tiny_llama)
    reset_peak()  # what other tests needed in this process is not the engine's
    engine, facts = build_text_engine(spec, lambda stage, fraction: None)
    overhead = measure_overhead(engine, facts, spec)
    assert overhead is not None
    assert overhead.context_bytes is not None
    assert MIB < overhead.context_bytes < 4096 * MIB
    assert 0 <= overhead.workspace_bytes < 1024 * MIB
    assert engine.step_stats().prefix_cache_queries == 0
    assert engine.step_stats().kv_cache_usage == 0


class FakeNvml:
    """One GPU with these (pid, bytes)."""

    class NVMLError(Exception):
        pass

    def __init__(self, processes: dict[int, int], *, works: bool = True) -> None:
        self._processes, self._works = processes, works

    def nvmlInit(self) -> None:
        if not self._works:
            raise self.NVMLError

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-u":
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=num) for pid, num in self._processes.items()]


@pytest.mark.parametrize(
    ("nvml", "uuid", "found"),
    [
        (FakeNvml({1: 5, os.getpid(): 700}), "u", 700),
        (FakeNvml({1: 5}), "u", None),  # in a container the driver knows us by another number
        (FakeNvml({os.getpid(): 700}), "other", None),
        (FakeNvml({os.getpid(): 700}, works=False), "u", None),
    ],
)
def test_the_driver_is_asked_for_this_process(nvml: FakeNvml, uuid: str, found: int | None) -> None:
    assert driver_bytes(uuid, nvml) == found
