"""The figures, against ones worked out by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.bench.client import RequestRecord
from inference_server.bench.load import LoadOutcome
from inference_server.bench.statistics import distribution, is_good, percentile, summarise

GOOD = RequestRecord(latency_s=1.1, ttft_s=0.1, gaps_s=(0.2, 0.3), num_input_tokens=100, num_output_tokens=11)
SLOW = RequestRecord(latency_s=3.0, ttft_s=1.0, gaps_s=(0.5,), num_input_tokens=50, num_output_tokens=5)
FAILED = RequestRecord(latency_s=0.5, error="status 500: no")
ALL = ("ttft", "tpot", "itl", "e2el")


def test_counts_and_rates_leave_failures_out() -> None:
    outcome = LoadOutcome((GOOD, SLOW, FAILED), duration_s=4.0, max_concurrent=3)
    result = summarise(outcome, metrics=ALL, goals_ms={"ttft": 500})
    expected = {
        "duration": 4.0,
        "completed": 2,
        "failed": 1,
        "total_input_tokens": 150,
        "total_output_tokens": 16,
        "request_throughput": 0.5,
        "request_goodput": 0.25,
        "output_throughput": 4.0,
        "total_token_throughput": 41.5,
        "max_concurrent_requests": 3,
        "errors": {"status 500: no": 1},
    }
    assert {key: result[key] for key in expected} == expected
    assert result["mean_e2el_ms"] == pytest.approx(2050)
    assert result["mean_ttft_ms"] == pytest.approx(550)
    assert result["std_ttft_ms"] == pytest.approx(450)
    assert result["mean_itl_ms"] == pytest.approx(1000 / 3)
    # (1.1 - 0.1) / 10 and (3.0 - 1.0) / 4
    assert result["median_tpot_ms"] == pytest.approx(300)


def test_only_the_metrics_asked_for_are_reported() -> None:
    result = summarise(LoadOutcome((GOOD,), 1.0, 1), metrics=("ttft",), goals_ms={})
    assert "p99_ttft_ms" in result
    assert "p99_itl_ms" not in result
    assert result["request_goodput"] is None


def test_a_load_in_which_everything_failed_has_no_latencies_and_no_division_by_zero() -> None:
    result = summarise(LoadOutcome((FAILED,), 0.0, 1), metrics=ALL, goals_ms={})
    assert result["mean_ttft_ms"] is None
    assert result["p99_e2el_ms"] is None
    assert result["output_throughput"] == 0.0


def test_one_token_answers_have_no_time_per_output_token() -> None:
    record = RequestRecord(latency_s=1.0, ttft_s=1.0, num_output_tokens=1)
    assert summarise(LoadOutcome((record,), 1.0, 1), metrics=("tpot",), goals_ms={})["mean_tpot_ms"] is None


@pytest.mark.parametrize(
    ("goals", "good"),
    [
        ({}, True),
        ({"ttft": 100.1, "tpot": 100.1, "e2el": 1100.1, "itl": 300.1}, True),
        ({"ttft": 99}, False),
        ({"ttft": 500, "tpot": 99}, False),
        ({"itl": 299}, False),
    ],
)
def test_a_request_is_good_if_its_worst_values_meet_every_goal(goals: dict[str, float], good: bool) -> None:
    assert is_good(GOOD, goals) is good


def test_percentiles_interpolate_as_numpy_does() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([1, 2, 3, 4], 99) == pytest.approx(3.97)
    assert percentile([5], 99) == 5
    assert percentile([], 50) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_the_distribution_agrees_with_the_standard_library(values: list[float]) -> None:
    found = distribution("x", values)
    assert found["mean_x_ms"] == pytest.approx(statistics.fmean(values))
    assert found["median_x_ms"] == pytest.approx(statistics.median(values))
    assert found["std_x_ms"] == pytest.approx(statistics.pstdev(values), abs=1e-6)
    assert found["p50_x_ms"] == found["median_x_ms"]
    assert min(values) <= found["p90_x_ms"] <= found["p95_x_ms"] <= found["p99_x_ms"] <= max(values)  # type: ignore[operator]
