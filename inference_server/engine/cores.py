"""How many threads may compute at once: the cores that this process may use, fewer where a quota says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from inference_server.cgroups import cgroups, lines_of


def usable_cores(root: Path = Path("/")) -> int:
    """At least 1. A container's limit of CPU time (cgroup v1 or v2) counts in whole cores.

    More threads than that use the quota up early in each period, and all of them then stand still.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Of every limited cgroup from ours up to the root, in cores."""
    for folder, is_v2 in cgroups("cpu", root):
        names = ("cpu.max",) if is_v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [word for name in names for line in lines_of(folder / name) for word in line.split()]
        if len(words) == 2 and all(map(str.isdigit, words)):  # without a limit: "max" or -1
            yield int(words[0]) / int(words[1])
