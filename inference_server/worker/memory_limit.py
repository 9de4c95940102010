"""A cap on what a worker may take of main memory, kept by the kernel: what is beyond it fails."""

from __future__ import annotations

import resource
from pathlib import Path


def limit_memory(num_bytes: int, status: Path = Path("/proc/self/status")) -> None:
    """Let this process take `num_bytes` of memory of its own beyond what it has now.

    Counted is what is reserved, touched or not: heap, private mappings (also weights that are mapped from the
    cache) and stacks of threads; shared pages are not (RLIMIT_DATA, Linux 4.7).
    """
    field = next(line for line in status.read_text(encoding="ascii").splitlines() if "VmData:" in line)
    limit = int(field.split()[1]) * 1024 + num_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
