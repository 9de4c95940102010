"""The traces of `bench swap`: who is asked how often, and when."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from inference_server.bench.options import SwapOptions
from inference_server.bench.swap_traces import burst, ping_pong, traces_of, zipf


def test_ping_pong_takes_models_in_turn_at_an_even_pace() -> None:
    trace = ping_pong(5, 2, request_rate=4.0)
    assert trace.models == (0, 1, 0, 1, 0)
    assert trace.arrivals_s == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert trace.seed is None


def test_a_burst_comes_all_at_once_and_asks_every_model_alike() -> None:
    trace = burst(7, 3)
    assert set(trace.arrivals_s) == {0.0}
    assert Counter(trace.models) == {0: 3, 1: 2, 2: 2}


def test_zipf_gives_each_model_its_share() -> None:
    counts = Counter(zipf(20_000, 4, 1.0, 10.0, seed=3).models)
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    for rank in range(1, 5):
        expected = 20_000 / rank / harmonic
        assert abs(counts[rank - 1] - expected) < 0.05 * 20_000 / harmonic


def test_zipf_arrives_at_its_rate() -> None:
    assert abs(zipf(20_000, 4, 1.0, 10.0, seed=3).arrivals_s[-1] - 2000) < 50


@given(st.integers(1, 50), st.integers(2, 8), st.floats(0.1, 3), st.floats(0.1, 100), st.integers(0, 9))
def test_a_seed_always_makes_the_same_trace_in_order_of_time(
    num_requests: int, num_models: int, exponent: float, rate: float, seed: int
) -> None:
    trace = zipf(num_requests, num_models, exponent, rate, seed)
    assert trace == zipf(num_requests, num_models, exponent, rate, seed)
    assert len(trace.models) == len(trace.arrivals_s) == num_requests
    assert list(trace.arrivals_s) == sorted(trace.arrivals_s)
    assert all(0 <= model < num_models for model in trace.models)


def test_seeds_differ() -> None:
    assert zipf(50, 6, 1.0, 5.0, 1).models != zipf(50, 6, 1.0, 5.0, 2).models


def test_options_name_the_traces_and_each_seed_makes_one() -> None:
    options = SwapOptions(base_url=None, num_models=6, num_resident=2, seeds=(1, 5), num_prompts=100)
    traces = traces_of(options, request_rate=2.0)
    assert [(trace.name, trace.seed, len(trace.models)) for trace in traces] == [
        ("ping-pong", None, 20),
        ("burst", None, 20),
        ("zipf", 1, 100),
        ("zipf", 5, 100),
    ]
    assert set(traces[0].models) == {0, 1, 2}  # one more than fit
    assert set(traces[1].models) == set(range(6))


def test_a_short_run_still_asks_every_model() -> None:
    options = SwapOptions(base_url=None, num_models=6, num_resident=5, traces=("burst",), num_prompts=3)
    assert set(traces_of(options, 1.0)[0].models) == set(range(6))
