"""What the runner knows of a server: how to make it ready to start, and how to start it. One value each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.peers.workshop import Workshop


@dataclass(frozen=True, slots=True)
class Started:
    """How one server is started on a port, and what to ask it for."""

    command: tuple[str, ...]
    base_url: str
    model: str
    ready_path: str = "/health"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Server:
    """A row of the table. `prepare` installs what is missing and returns how to start on a given port."""

    key: str
    name: str
    weights: str
    prepare: Callable[[Workshop], Callable[[int], Started]]
    is_ours: bool = False


def num_threads() -> int:
    """The processors that this process may use: every server gets as many threads."""
    return len(os.sched_getaffinity(0))
