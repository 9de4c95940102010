"""How often models change places under a mixed load, and how long requests wait for it."""

from __future__ import annotations

import asyncio

import pytest

from inference_server.config.settings import Settings
from inference_server.model_manager.eviction import EvictionPolicy
from inference_server.model_manager.swapping import SwapRules, protected_until_s, rules_of
from tests.model_manager.fakes import FakeLauncher, build_house, now_s
from tests.model_manager.trace import LOAD_S, STOP_S, Request, replay, zipf_trace
from tests.model_manager.virtual_time import run

PLAIN = Settings(collate=False, eviction_policy="lru")


@pytest.mark.parametrize("seed", [1, 2])
def test_collating_needs_a_third_of_the_swaps_and_nobody_waits_longer_for_it(seed: int) -> None:
    trace = zipf_trace(seed)
    plain, collated = replay(trace, PLAIN), replay(trace, Settings())
    assert len(collated.waits_s) == len(trace)
    assert collated.num_swaps * 3 <= plain.num_swaps
    assert collated.wait_s(0.99) <= plain.wait_s(0.99)
    # a turn for each of the five others at most, with its minimum, its drain and its load
    assert collated.waits_s[-1] <= Settings().max_swap_wait + 5 * (Settings().min_residency + 2.0 + 1.7)


def test_alternating_requests_are_collated_by_model() -> None:
    names = ["a", "b", "c"]  # two fit
    trace = [Request(names[index % 3], 0.01 * index, 0.5) for index in range(30)]
    assert replay(trace, Settings()).num_swaps == 3
    assert replay(trace, PLAIN).num_swaps > 10


def test_a_model_that_is_always_in_use_still_makes_way_after_the_maximum_wait() -> None:
    busy = [Request(name, 0.2 * index, 1.0) for index in range(300) for name in ("a", "b")]
    trace = [*busy, Request("c", 5.0, 0.5)]
    outcome = replay(trace, Settings(max_swap_wait=10.0))
    assert outcome.num_swaps in (4, 5)  # c came, and who had gone for it came back
    assert outcome.waits_s[-1] <= 10.0 + 1.0 + 0.2 + 1.5 + 10.0  # wait, drain, stop, load; and the way back
    starved = replay(trace, Settings(max_swap_wait=1e6))
    assert starved.num_swaps == 3
    assert starved.waits_s[-1] > 50.0


def test_without_collating_requests_are_served_in_the_order_in_which_they_came() -> None:
    trace = [Request(name, 0.01 * index, 0.1) for index, name in enumerate(["a", "b", "c"] * 4)]
    outcome = replay(trace, PLAIN)
    assert outcome.num_swaps == 12  # with two places, each next model is the one that left last


def test_the_rules_are_those_of_the_settings_and_have_no_limits_in_order_of_arrival() -> None:
    settings = Settings(eviction_policy="lru", min_residency=3.0, max_swap_wait=7.0)
    assert rules_of(settings) == SwapRules(EvictionPolicy.LRU, True, 3.0, 7.0)
    assert rules_of(PLAIN) == SwapRules(EvictionPolicy.LRU, False, 0.0, 0.0)


@pytest.mark.parametrize(
    ("last_used_s", "is_used", "end_s"), [(10.0, True, 14.0), (10.0, False, 11.0), (13.5, False, 14.0)]
)
def test_a_model_keeps_its_place_for_its_minimum_unless_nobody_uses_it(
    last_used_s: float, is_used: bool, end_s: float
) -> None:
    found = protected_until_s(ready_s=10.0, last_used_s=last_used_s, is_used=is_used, min_residency_s=4.0)
    assert found == end_s


def test_a_lone_user_who_goes_back_and_forth_waits_little_longer_than_for_the_load() -> None:
    settings = Settings()
    waits_s = run(_back_and_forth(settings))
    assert max(waits_s) <= LOAD_S + STOP_S + 0.25 * settings.min_residency + 0.01


async def _back_and_forth(settings: Settings) -> list[float]:
    launcher = FakeLauncher(prepare_s=0.0, launch_s=LOAD_S, stop_s=STOP_S)
    house = build_house({"a": 10, "b": 10}, budget=10, launcher=launcher, settings=settings)
    waits_s = []
    for name in ["a", "b"] * 5:
        asked_s = now_s()
        async with house.acquire(name):
            waits_s.append(now_s() - asked_s)
            await asyncio.sleep(0.3)
    await house.manager.stop()
    return waits_s
