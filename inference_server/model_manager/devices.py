"""What memory this machine really has and has free: the host with its cgroup limits, and GPUs through NVML.

Torch-free. Says nothing of budgets; a limit that cannot be read is taken as absent.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inference_server.cgroups import cgroups, lines_of

ReadT = TypeVar("ReadT")
HOST = "cpu"
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes a huge number where there is no limit
# Files that hold a limit, the file that holds the usage, and what names of totals in memory.stat begin with.
_V1_NAMES = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")
_V2_NAMES = (("memory.max", "memory.high"), "memory.current", "")
_DROPPABLE = ("inactive_file", "active_file", "slab_reclaimable")  # the kernel takes them back


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """`total_bytes` may be used by this process at most; `free_bytes` of them are free now."""

    total_bytes: int
    free_bytes: int


DeviceProbe = Callable[[], dict[str, DeviceMemory]]


def discover_devices() -> dict[str, DeviceMemory]:
    """The host as "cpu" and every usable GPU as "cuda:N" (torch's numbering). Cheap enough for each load."""
    return {HOST: host_memory()} | (gpu_memory() if torch_has_cuda() else {})


# ---------------------------------------------------------------- host


def host_memory(root: Path = Path("/")) -> DeviceMemory:
    """The machine's memory, cut down to the tightest cgroup around this process (v1 or v2)."""
    meminfo = _numbers(root / "proc/meminfo")
    total = meminfo.get("MemTotal:", 0) * 1024
    free = meminfo.get("MemAvailable:", meminfo.get("MemFree:", 0)) * 1024
    for limit, used in _cgroup_usage(root):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return DeviceMemory(total_bytes=total, free_bytes=free)


def _cgroup_usage(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be dropped) of every limited cgroup from ours up to the root."""
    for folder, is_v2 in cgroups("memory", root):
        limit_files, usage_file, prefix = _V2_NAMES if is_v2 else _V1_NAMES
        stat = _numbers(folder / "memory.stat")
        limits = [_number(folder / name) for name in limit_files]
        limits.append(stat.get("hierarchical_memory_limit"))  # v1: of groups that we may not see
        limit = min((found for found in limits if found is not None), default=_NO_LIMIT_BYTES)
        usage = _number(folder / usage_file)
        if usage is None or limit >= _NO_LIMIT_BYTES:
            continue
        droppable = sum(stat.get(f"{prefix}{kind}", 0) for kind in _DROPPABLE)
        yield limit, max(0, usage - droppable)


def resident_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """What one process holds that the kernel cannot drop: its resident set without pages of files.

    Such pages, mapped weights among them, count as free memory wherever that is read. 0 once it is gone.
    """
    line = next(iter(lines_of(proc / f"{pid}/statm")), "0 0 0")
    _, resident, shared, *_ = line.split()
    return max(0, int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of the CPU, by Linux's names."""
    for line in lines_of(cpuinfo):
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _number(path: Path) -> int | None:
    text = "".join(lines_of(path)[:1]).strip()
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    """Lines of "name value ..." as a dictionary."""
    fields = (line.split() for line in lines_of(path))
    return {parts[0]: int(parts[1]) for parts in fields if len(parts) >= 2 and parts[1].isdigit()}


# ---------------------------------------------------------------- GPUs


def torch_has_cuda() -> bool:
    """Whether the installed torch can use a GPU at all, found out without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists()


def gpu_memory(env: Mapping[str, str] = os.environ, nvml: Any = None) -> dict[str, DeviceMemory]:
    """Memory of the GPUs that CUDA will show, in its order; empty where there is no working driver.

    `nvml` is the pynvml module, or a fake of it.
    """

    def read(library: Any, handle: Any) -> DeviceMemory:
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        return DeviceMemory(int(memory.total), int(memory.free))

    return _of_each_gpu(read, env, nvml)


def compute_capability(
    device: str, env: Mapping[str, str] = os.environ, nvml: Any = None
) -> tuple[int, int] | None:
    """CUDA's (major, minor) of "cuda:N"; None where the driver does not tell."""

    def read(library: Any, handle: Any) -> tuple[int, int]:
        major, minor = library.nvmlDeviceGetCudaComputeCapability(handle)
        return int(major), int(minor)

    return _of_each_gpu(read, env, nvml).get(device)


def _of_each_gpu(read: Callable[[Any, Any], ReadT], env: Mapping[str, str], nvml: Any) -> dict[str, ReadT]:
    """What `read` finds on each GPU that CUDA will show; empty where there is no working driver."""
    try:
        library = nvml if nvml is not None else importlib.import_module("pynvml")
    except ImportError:
        return {}
    try:
        library.nvmlInit()
    except library.NVMLError:
        return {}
    try:
        handles = _visible_handles(library, env.get("CUDA_VISIBLE_DEVICES"))
        return {f"cuda:{index}": read(library, handle) for index, handle in enumerate(handles)}
    except library.NVMLError:
        return {}
    finally:
        library.nvmlShutdown()


def _visible_handles(nvml: Any, visible: str | None) -> Iterator[Any]:
    """NVML handles in CUDA's order. CUDA stops at the first entry that names no device; so do we."""
    if visible is None:
        yield from _all_handles(nvml)
        return
    for entry in (part.strip() for part in visible.split(",")):
        try:
            if entry.isdigit():
                yield from _instances(nvml, nvml.nvmlDeviceGetHandleByIndex(int(entry)))
            else:
                yield nvml.nvmlDeviceGetHandleByUUID(entry)
        except nvml.NVMLError:
            return


def _all_handles(nvml: Any) -> Iterator[Any]:
    for index in range(nvml.nvmlDeviceGetCount()):
        yield from _instances(nvml, nvml.nvmlDeviceGetHandleByIndex(index))


def _instances(nvml: Any, handle: Any) -> Iterator[Any]:
    """The GPU itself, or, where it is split (MIG), the first instance: CUDA shows no more than that."""
    try:
        is_split = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:
        is_split = False  # the GPU cannot be split
    if not is_split:
        yield handle
        return
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:
            continue
        return
