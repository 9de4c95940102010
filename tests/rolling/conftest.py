from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rolling.replicas import Replica

TALKER = "models: {talker: {source: 'scripted:?output_tokens=100000&step_ms=5', preload: true}}\n"

Replicas = Callable[..., list[Replica]]


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    """Starts replicas, one per configuration, and waits until all are ready; ends them after the test."""
    started: list[Replica] = []

    def start(*configurations: str) -> list[Replica]:
        new = [Replica(tmp_path, models) for models in configurations]
        started.extend(new)
        for replica in new:
            replica.wait_until_ready()
        return new

    yield start
    for replica in started:
        replica.kill()
