"""Prompts, arrivals and the driver, by a clock that only the driver moves."""

from __future__ import annotations

import asyncio
import math
import random
from itertools import pairwise

from inference_server.bench.client import RequestRecord
from inference_server.bench.load import LoadDriver
from inference_server.bench.workload import Workload, make_arrivals, make_workload


class FakeTime:
    """Time that passes in `sleep` only."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)  # what was started before runs before
        self.now_s += seconds


def test_a_seed_gives_the_same_words_and_a_label_makes_them_new_to_a_prefix_cache() -> None:
    def make(seed: int, label: str) -> Workload:
        return make_workload(5, input_len=150, request_rate=2.0, burstiness=1.0, seed=seed, label=label)

    assert make(1, "a") == make(1, "a")
    assert make(1, "a").arrivals_s == make(1, "b").arrivals_s
    first, second = make(1, "a").prompts[0], make(1, "b").prompts[0]
    assert (first[:3], second[:3]) == ("[a.", "[b.")
    assert first[3:] == second[3:]
    assert make(1, "a").prompts != make(2, "a").prompts
    assert len(set(make(1, "a").prompts)) == 5


def test_prompts_have_about_the_length_that_was_asked_for() -> None:
    (prompt,) = make_workload(
        1, input_len=150, request_rate=math.inf, burstiness=1.0, seed=0, label="x"
    ).prompts
    assert len(prompt.split()) == 108
    assert make_workload(1, input_len=1, request_rate=math.inf, burstiness=1.0, seed=0, label="x").prompts


def test_arrivals_keep_the_rate_and_burstiness_makes_their_gaps_uneven() -> None:
    def spread(burstiness: float) -> float:
        arrivals_s = make_arrivals(4000, 10.0, burstiness, random.Random(0))
        gaps_s = [after - before for before, after in pairwise(arrivals_s)]
        mean_s = sum(gaps_s) / len(gaps_s)
        assert 0.08 < mean_s < 0.12
        return math.sqrt(sum((gap_s - mean_s) ** 2 for gap_s in gaps_s) / len(gaps_s)) / mean_s

    assert 0.9 < spread(1.0) < 1.1  # exponential gaps: deviation equals mean
    assert spread(0.25) > 1.6
    assert spread(100.0) < 0.2
    assert make_arrivals(3, math.inf, 1.0, random.Random(0)) == (0.0, 0.0, 0.0)


def test_a_closed_loop_keeps_its_places_full_and_never_more() -> None:
    running, seen = 0, []

    async def send(prompt: str) -> RequestRecord:
        nonlocal running
        running += 1
        seen.append(running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return RequestRecord(latency_s=0.0, error=prompt)

    workload = Workload(tuple(map(str, range(20))), (0.0,) * 20)
    num_done = []
    driver = LoadDriver(send, max_concurrency=4, on_done=lambda: num_done.append(1))
    outcome = asyncio.run(driver.run(workload))
    assert max(seen) == outcome.max_concurrent == 4
    assert [record.error for record in outcome.records] == list(workload.prompts)
    assert len(num_done) == 20


def test_an_open_loop_sends_at_its_times_whatever_is_still_running() -> None:
    time, sent_s = FakeTime(), []
    gate = asyncio.Event()

    async def send(prompt: str) -> RequestRecord:
        sent_s.append(time.now_s)
        if prompt == "last":
            gate.set()
        await gate.wait()
        return RequestRecord(latency_s=0.0)

    driver = LoadDriver(send, max_concurrency=None, clock=time.clock, sleep=time.sleep)
    outcome = asyncio.run(driver.run(Workload(("a", "b", "last"), (0.0, 1.0, 3.5))))
    assert sent_s == [0.0, 1.0, 3.5]
    assert outcome.max_concurrent == 3
    assert outcome.duration_s == 3.5
