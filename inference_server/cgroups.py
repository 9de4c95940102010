"""The control groups around this process, of version 1 or 2: where a container's limits stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cgroups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Each group for this controller, from ours up to the root: its folder, and whether that is version 2."""
    for line in lines_of(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for part in (inside, *inside.parents):  # a container often sees its own cgroup as the root
            yield mount / part, not controllers


def lines_of(path: Path) -> list[str]:
    """Of a small file of the kernel's; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
