"""From what happened to what `bench swap` reports."""

from __future__ import annotations

from inference_server.bench.client import RequestRecord
from inference_server.bench.load import LoadOutcome
from inference_server.bench.statistics import Result
from inference_server.bench.swap_counts import Stay, SwapCounts
from inference_server.bench.swap_statistics import compare, medians, summarise_trial, waits
from inference_server.bench.swap_traces import Trace
from inference_server.bench.swap_trial import Trial


def record(start_s: float, ttft_s: float | None, error: str | None = None) -> RequestRecord:
    return RequestRecord(latency_s=9.0, start_s=start_s, ttft_s=ttft_s, error=error)


def test_a_trial_is_counted_and_its_waits_are_those_of_answered_requests() -> None:
    records = (record(0, 1.0), record(1, 3.0), record(2, None, "status 503: no"), record(3, 2.0))
    trial = Trial(
        Trace("zipf", (0.0, 1.0, 2.0, 3.0), (0, 1, 0, 1), seed=4),
        ("a", "b", "a", "b"),
        LoadOutcome(records, duration_s=12.0, max_concurrent=4),
        SwapCounts(loads=5, wakes=2, failed_loads=1, evictions=6),
        (Stay("a", 0.5, 2.0), Stay("b", 3.0, 6.0), Stay("a", 6.0, 7.0)),
    )
    assert summarise_trial(trial, "default") == {
        "trace": "zipf",
        "seed": 4,
        "policy": "default",
        "duration": 12.0,
        "completed": 3,
        "failed": 1,
        "swaps": 7,
        "loads": 5,
        "wakes": 2,
        "failed_loads": 1,
        "evictions": 6,
        "wasted_loads": 1,
        "p50_wait_ms": 2000.0,
        "p99_wait_ms": 2980.0,
        "max_wait_ms": 3000.0,
        "errors": {"status 503: no": 1},
    }


def test_without_waits_there_is_no_figure() -> None:
    assert waits("wake", []) == {"p50_wake_ms": None, "p99_wake_ms": None, "max_wake_ms": None}


def row(trace: str, seed: int | None, policy: str, swaps: int, p99: float | None) -> Result:
    return {"trace": trace, "seed": seed, "policy": policy, "swaps": swaps, "p99_wait_ms": p99}


def test_trials_are_compared_seed_by_seed_and_each_trace_has_its_median() -> None:
    trials = [
        row("zipf", 1, "new", 10, 500.0),
        row("zipf", 1, "old", 40, 1000.0),
        row("zipf", 2, "new", 10, 900.0),
        row("zipf", 2, "old", 20, 1000.0),
        row("burst", None, "new", 0, None),
        row("burst", None, "old", 6, 1000.0),
        row("ping-pong", None, "new", 3, 1000.0),
    ]
    compared = compare(trials, "new", "old")
    assert [(r["trace"], r["seed"], r["swaps_ratio"], r["p99_wait_ratio"]) for r in compared] == [
        ("zipf", 1, 4.0, 0.5),
        ("zipf", 2, 2.0, 0.9),
        ("burst", None, None, None),
    ]
    assert medians(compared) == [
        {"trace": "zipf", "swaps_ratio": 3.0, "p99_wait_ratio": 0.7},
        {"trace": "burst", "swaps_ratio": None, "p99_wait_ratio": None},
    ]
