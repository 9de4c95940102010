"""A long prompt beside streams, through the whole engine and in virtual time."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path
from statistics import median

import pytest

from inference_server.engine.scheduling import build_scheduler
from inference_server.engine.text_engine import TextEngine
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import FinishedStep
from tests.engine.reference import engine_spec, greedy_request

VOCAB_SIZE = 100
STEP_S, DECODE_S, PROMPT_TOKEN_S = 0.007, 0.001, 0.0005


class Device:
    """A `StepRunner` whose steps take virtual time, one after the other; the host takes none."""

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.now_s = 0.0
        self._free_s = 0.0

    def launch(self, batch: Batch) -> DeviceStep:
        num_decodes = len(batch.decoding)
        seconds = STEP_S + DECODE_S * num_decodes + PROMPT_TOKEN_S * (batch.num_tokens - num_decodes)
        self._free_s = max(self._free_s, self.now_s) + seconds
        return DeviceStep(self, [(5,)] * len(batch.sampling), self._free_s)

    def is_fatal(self, error: Exception) -> bool:
        return False


class DeviceStep(FinishedStep):
    def __init__(self, device: Device, tokens: Seq[Seq[int]], ends_s: float) -> None:
        super().__init__(tokens)
        self._device = device
        self._ends_s = ends_s

    def tokens(self) -> Seq[Seq[int]]:
        self._device.now_s = max(self._device.now_s, self._ends_s)
        return super().tokens()


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_streams_go_on_at_a_third_of_their_pace_at_least_while_a_long_prompt_is_computed(
    max_in_flight: int,
) -> None:
    spec = engine_spec(
        Path("unused"),
        max_model_len=8192,
        kv_cache_tokens=65536,
        max_num_batched_tokens=2048,
        prefill_slowdown=2.5,
    )
    device = Device(max_in_flight)
    engine = TextEngine(build_scheduler(spec, ()), device, VOCAB_SIZE, clock=lambda: device.now_s)
    for index in range(8):
        engine.submit(greedy_request(str(index), [index] * 100, 1000))
    last_s: dict[str, float] = {}
    gaps: list[float] = []

    def step() -> set[str]:
        outcome = engine.step()
        for delta in outcome.deltas:
            if delta.request_id in last_s:
                gaps.append(device.now_s - last_s[delta.request_id])
            last_s[delta.request_id] = device.now_s
        return {delta.request_id for delta in outcome.deltas}

    for _ in range(60):
        step()
    quiet_s = median(gaps)
    assert quiet_s == pytest.approx(STEP_S + 8 * DECODE_S)
    gaps.clear()
    engine.submit(greedy_request("long", [9] * 4000, 5))
    while "long" not in step():
        assert len(gaps) < 8000
    assert max(gaps) <= 3 * quiet_s
    assert len(gaps) > 300
    engine.check_integrity()
