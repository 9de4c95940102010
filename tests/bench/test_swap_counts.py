"""What `bench swap` reads from a server, and which loads it calls wasted."""

from __future__ import annotations

import httpx
from hypothesis import given
from hypothesis import strategies as st

from inference_server.bench.swap_counts import Stay, SwapCounts, counts_in, num_wasted
from inference_server.bench.swap_trial import Watch
from inference_server.telemetry.metrics import Metrics


def page_of(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


def test_the_counters_of_a_real_page_are_found_under_all_models() -> None:
    metrics = Metrics(["a", 'b "quoted", {odd}'])
    assert counts_in(page_of(metrics)) == SwapCounts(loads=0, wakes=0, failed_loads=0, evictions=0)
    metrics.on_load("a", 1.5, True, "disk")
    metrics.on_load("a", 1.5, True, "hub")
    metrics.on_load("a", 0.5, True, "ram")
    metrics.on_load('b "quoted", {odd}', 0.5, False, "disk")
    metrics.on_eviction("a", "memory")
    assert counts_in(page_of(metrics)) == SwapCounts(loads=2, wakes=1, failed_loads=1, evictions=1)


def test_counts_subtract_and_a_swap_is_a_load_or_a_wake() -> None:
    before = SwapCounts(loads=1, wakes=2, failed_loads=3, evictions=4)
    after = SwapCounts(loads=11, wakes=22, failed_loads=33, evictions=44)
    assert after.since(before) == SwapCounts(loads=10, wakes=20, failed_loads=30, evictions=40)
    assert after.swaps == 33


def test_a_stay_that_ended_without_an_answer_was_wasted() -> None:
    stays = [Stay("a", 0, 10), Stay("b", 10, 20), Stay("a", 20, 30), Stay("c", 30)]
    assert num_wasted(stays, [("a", 5.0), ("b", 25.0)]) == 2  # b's answer came in none of its stays
    assert num_wasted(stays, [("a", 5.0), ("b", 20.0), ("a", 20.0)]) == 0
    assert num_wasted([Stay("c", 30)], []) == 0  # it may answer yet


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=12))
def test_watching_finds_every_stay_no_shorter_than_it_was(looks: list[set[str]]) -> None:
    times = iter(range(100))
    watch = Watch(httpx.AsyncClient(), clock=lambda: float(next(times)))  # it looks at 1, 2, 3, …
    for in_memory in looks:
        watch.look(in_memory)
    expected = []
    for model in "abc":
        seen = [model in in_memory for in_memory in looks]
        begins = [i for i, now in enumerate(seen) if now and not (i and seen[i - 1])]
        for begin in begins:
            end = next((i for i in range(begin, len(seen)) if not seen[i]), None)
            expected.append(Stay(model, float(begin), None if end is None else float(end + 1)))
    assert sorted(watch.stays(), key=str) == sorted(expected, key=str)
