"""What memory the machine has: /proc, cgroups and NVML, all from fakes on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference_server.model_manager.devices import (
    DeviceMemory,
    compute_capability,
    cpu_flags,
    discover_devices,
    gpu_memory,
    host_memory,
    resident_bytes,
)

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"


def machine(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_cgroup_the_host_is_what_meminfo_says(tmp_path: Path) -> None:
    assert host_memory(machine(tmp_path, {})) == DeviceMemory(1000 * 1024, 600 * 1024)


def test_a_v2_limit_caps_total_and_free_and_page_cache_counts_as_free(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "400000\n",
            "sys/fs/cgroup/memory.current": "300000\n",
            "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 40000\nactive_file 10000\n",
        },
    )
    assert host_memory(root) == DeviceMemory(400000, 150000)


def test_the_tightest_of_nested_v2_groups_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/server\n",
            "sys/fs/cgroup/pod/server/memory.max": "max\n",
            "sys/fs/cgroup/pod/server/memory.current": "10\n",
            "sys/fs/cgroup/pod/memory.max": "500000\n",
            "sys/fs/cgroup/pod/memory.current": "450000\n",
        },
    )
    assert host_memory(root) == DeviceMemory(500000, 50000)


def test_a_v1_limit_is_read_and_its_no_limit_number_is_ignored(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "3:cpu:/\n2:memory:/job\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "200000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "150000\n",
        "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 50000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "150000\n",
    }
    assert host_memory(machine(tmp_path, files)) == DeviceMemory(200000, 100000)


def test_a_v2_group_that_is_slowed_down_above_a_mark_counts_up_to_it(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "400000\n",
        "sys/fs/cgroup/memory.high": "350000\n",
        "sys/fs/cgroup/memory.current": "300000\n",
        "sys/fs/cgroup/memory.stat": "slab_reclaimable 20000\nshmem 50000\n",
    }
    assert host_memory(machine(tmp_path, files)) == DeviceMemory(350000, 70000)


def test_a_v1_limit_of_a_group_outside_the_container_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "2:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "150000\n",
        "sys/fs/cgroup/memory/memory.stat": "hierarchical_memory_limit 250000\ntotal_active_file 10000\n",
    }
    assert host_memory(machine(tmp_path, files)) == DeviceMemory(250000, 110000)


def test_other_processes_count_even_if_the_groups_limit_is_far_away(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000000\n",
        "sys/fs/cgroup/memory.current": "1000\n",
    }
    assert host_memory(machine(tmp_path, files)) == DeviceMemory(1000000, 600 * 1024)


def test_a_usage_beyond_the_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100000\n",
        "sys/fs/cgroup/memory.current": "120000\n",
    }
    assert host_memory(machine(tmp_path, files)) == DeviceMemory(100000, 0)


def test_this_machine_has_memory_and_free_is_not_more_than_total() -> None:
    host = discover_devices()["cpu"]
    assert 0 < host.free_bytes <= host.total_bytes


def test_what_a_live_process_holds_is_positive_and_of_a_dead_one_zero() -> None:
    assert resident_bytes(os.getpid()) > 1_000_000
    assert resident_bytes(2**22 + 1) == 0


def test_pages_of_files_are_not_held(tmp_path: Path) -> None:
    machine(tmp_path, {"77/statm": "5000 300 120 1 0 900 0\n"})
    assert resident_bytes(77, tmp_path) == 180 * os.sysconf("SC_PAGE_SIZE")


def test_cpu_flags_are_read_once_from_the_first_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx512_bf16\nprocessor : 1\nflags : fpu\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx512_bf16"}
    assert cpu_flags(tmp_path / "missing") == frozenset()


class FakeNvml:
    """The part of pynvml that is used. Handles are names; `split` maps a GPU to its MIG instances."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    def __init__(
        self, gpus: list[str], split: Mapping[str, list[str]] | None = None, broken: bool = False
    ) -> None:
        self.gpus, self.split, self.broken = gpus, dict(split or {}), broken
        self.num_open = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= len(self.gpus):
            raise self.NVMLError
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        known = [*self.gpus, *(part for parts in self.split.values() for part in parts)]
        if uuid not in known:
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        if handle == "old":
            raise self.NVMLError
        return [int(handle in self.split), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        if index >= len(self.split[handle]) or not self.split[handle][index]:
            raise self.NVMLError
        return self.split[handle][index]

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> list[int]:
        if handle == "old":
            raise self.NVMLError
        return [8, 6 + len(handle)]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(total=1000 + len(handle), free=len(handle))


def test_the_compute_capability_is_that_of_the_gpu_that_cuda_shows() -> None:
    nvml = FakeNvml(["a", "bb"])
    assert compute_capability("cuda:1", {}, nvml) == (8, 8)
    assert compute_capability("cuda:0", {"CUDA_VISIBLE_DEVICES": "1"}, nvml) == (8, 8)
    assert compute_capability("cuda:2", {}, nvml) is None
    assert compute_capability("cuda:0", {}, FakeNvml(["old"])) is None
    assert compute_capability("cuda:0", {}, FakeNvml(["a"], broken=True)) is None


def free_bytes(nvml: FakeNvml, **env: str) -> dict[str, int]:
    found = gpu_memory(env, nvml)
    assert nvml.num_open == 0
    return {name: memory.free_bytes for name, memory in found.items()}


def test_gpus_are_numbered_as_cuda_numbers_them() -> None:
    nvml = FakeNvml(["a", "bb", "ccc"])
    assert free_bytes(nvml) == {"cuda:0": 1, "cuda:1": 2, "cuda:2": 3}
    assert free_bytes(nvml, CUDA_VISIBLE_DEVICES="2,0") == {"cuda:0": 3, "cuda:1": 1}
    assert free_bytes(nvml, CUDA_VISIBLE_DEVICES="bb") == {"cuda:0": 2}


@pytest.mark.parametrize(("visible", "num_gpus"), [("", 0), ("-1", 0), ("0,-1,1", 1), ("0,9,1", 1)])
def test_the_list_of_visible_gpus_ends_at_the_first_one_that_does_not_exist(
    visible: str, num_gpus: int
) -> None:
    assert len(free_bytes(FakeNvml(["1", "22"]), CUDA_VISIBLE_DEVICES=visible)) == num_gpus


def test_a_split_gpu_counts_with_its_first_instance_and_an_old_one_as_a_whole() -> None:
    nvml = FakeNvml(["old", "1"], split={"1": ["", "MIG-one", "MIG-three"]})
    assert free_bytes(nvml) == {"cuda:0": 3, "cuda:1": 7}
    assert free_bytes(nvml, CUDA_VISIBLE_DEVICES="MIG-three") == {"cuda:0": 9}


def test_a_machine_without_a_working_driver_has_no_gpus() -> None:
    assert gpu_memory({}, FakeNvml([], broken=True)) == {}
