"""Sleep on a GPU, with everything but the GPU: what is given up, and what a failed wake leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from inference_server.engine.device_sleeper import DeviceSleeper
from inference_server.execution.kv_cache import KVCache, LayerShape
from inference_server.execution.parking import Parking


@dataclass
class FakeRunner:
    """What the sleeper asks of a `CudaRunner`."""

    log: list[str]
    fails: bool = False

    def release(self) -> None:
        self.log.append("release")

    def restore(self) -> None:
        self.log.append("restore")
        if self.fails:
            raise torch.OutOfMemoryError("no room for the graphs")


@dataclass
class Place:
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = torch.arange(100, dtype=torch.float32)
        self.cache = KVCache(
            [LayerShape(1, 2, 2)], num_blocks=2, block_size=2, dtype=torch.float32, device=torch.device("cpu")
        )
        self.runner = FakeRunner(self.log)
        self.parking = Parking([self.weights.untyped_storage()], locks_pages=False)
        self.sleeper = DeviceSleeper(
            self.runner,  # type: ignore[arg-type]
            self.cache,
            self.parking,
            free_cache=lambda: self.log.append("free"),
        )


def test_asleep_nothing_is_held_and_awake_all_is_there_again() -> None:
    place = Place()
    before = place.sleeper.memory()
    assert (before.weights_bytes, before.kv_cache_bytes) == (400, place.cache.num_bytes)
    place.sleeper.sleep()
    asleep = place.sleeper.memory()
    assert (asleep.weights_bytes, asleep.kv_cache_bytes) == (0, 0)
    assert place.log == ["release", "free"]
    place.sleeper.wake()
    assert place.log[2:] == ["restore"]
    assert place.sleeper.memory().weights_bytes == 400
    assert torch.equal(place.weights, torch.arange(100, dtype=torch.float32))


def test_a_wake_that_fails_at_its_end_sleeps_on_and_can_be_tried_again() -> None:
    place = Place()
    place.sleeper.sleep()
    place.runner.fails = True
    with pytest.raises(torch.OutOfMemoryError):
        place.sleeper.wake()
    asleep = place.sleeper.memory()
    assert (asleep.weights_bytes, asleep.kv_cache_bytes) == (0, 0)
    place.runner.fails = False
    place.sleeper.wake()
    assert torch.equal(place.weights, torch.arange(100, dtype=torch.float32))
