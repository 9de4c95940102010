"""What this process holds for itself alone, as the kernel counts it: now, and at its peak.

Private memory is what no other process maps and the kernel cannot drop: pages shared with the fork server
and pages of files cost nothing more. Linux only; knows no engine.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Region = tuple[int, int]  # address, bytes
_KIB = 1024
_RESET_PEAK = "5"  # proc(5), clear_refs


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """`private_bytes` now, and at the most since the start or the last reset."""

    private_bytes: int
    peak_private_bytes: int


def process_memory(proc: Path = Path("/proc/self")) -> ProcessMemory | None:
    """The two figures, or None where the kernel does not give them.

    The kernel keeps the peak of the whole resident set only; what is shared is taken to be as it is now.
    """
    try:
        private = _kib(proc / "smaps_rollup", "Private_Dirty:") * _KIB
        status = proc / "status"
        growth = (_kib(status, "VmHWM:") - _kib(status, "VmRSS:")) * _KIB
    except (OSError, KeyError, ValueError):
        return None
    return ProcessMemory(private, private + max(0, growth))


def resident_bytes() -> int:
    """This process's resident set."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * mmap.PAGESIZE


def give_back_freed_memory() -> None:
    """Let the C library return what it keeps of freed memory; others than glibc keep little."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reset_peak(proc: Path = Path("/proc/self")) -> bool:
    """Let the peak begin anew; False where the kernel does not."""
    try:
        (proc / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def touched_bytes(regions: Iterable[Region]) -> int:
    """How much of these regions of our memory has pages: the kernel gives them when they are first written.

    Raises:
        OSError: a region is not ours.
    """
    return sum(_num_pages(address, num_bytes) for address, num_bytes in regions) * mmap.PAGESIZE


def anonymous_bytes(regions: Iterable[Region], proc: Path = Path("/proc/self")) -> int:
    """How much of these regions is no mapping of a file, by /proc/self/maps: the kernel cannot drop it."""
    files = _file_mappings(proc)
    total = 0
    for address, num_bytes in regions:
        place = bisect.bisect_right(files, (address, math.inf)) - 1
        if place < 0 or address >= files[place][1]:
            total += num_bytes
    return total


def _file_mappings(proc: Path) -> list[tuple[int, float]]:
    """Address ranges [begin, end) that are mapped from files, sorted."""
    found = []
    for line in (proc / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
        bounds, _, _, _, inode = line.split(maxsplit=5)[:5]
        if inode != "0":
            begin, _, end = bounds.partition("-")
            found.append((int(begin, 16), float(int(end, 16))))
    return sorted(found)


def _num_pages(address: int, num_bytes: int) -> int:
    """Pages in memory of those that the region touches, by mincore(2)."""
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    length = address + num_bytes - start
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), pages):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return sum(page & 1 for page in bytes(pages))


def _kib(path: Path, field: str) -> int:
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise KeyError(field)
