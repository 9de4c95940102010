"""How many threads may compute at once: the cores that this process may use, fewer where a quota says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """At least 1. A container's limit of CPU time (cgroup v1 or v2) counts in whole cores.

    More threads than that use the quota up early in each period, and all of them then stand still.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Of every limited cgroup from ours up to the root, in cores."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        inside = PurePosixPath(path.lstrip("/"))
        for part in (inside, *inside.parents):  # a container often sees its own cgroup as the root
            if not controllers:
                quota, _, period = _text(root / "sys/fs/cgroup" / part / "cpu.max").strip().partition(" ")
            elif "cpu" in controllers.split(","):
                folder = root / "sys/fs/cgroup/cpu" / part
                quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
            else:
                break
            if quota.isdigit() and period.isdigit():  # without a limit: "max" or -1
                yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
