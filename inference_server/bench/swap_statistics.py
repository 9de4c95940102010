"""From trials to the result of `bench swap`. Pure; seconds in, milliseconds out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from inference_server.bench.statistics import Result, percentile
from inference_server.bench.swap_counts import num_wasted
from inference_server.bench.swap_trial import Trial

RANKS = (50, 99)


def summarise_trial(trial: Trial, policy: str) -> Result:
    """Counts, and the wait for the first token of every request that got one."""
    records = trial.outcome.records
    completed = [record for record in records if record.error is None]
    answers = [
        (model, record.start_s + record.ttft_s)
        for model, record in zip(trial.models, records, strict=True)
        if record.ttft_s is not None
    ]
    errors = Counter(record.error for record in records if record.error is not None)
    return {
        "trace": trial.trace.name,
        "seed": trial.trace.seed,
        "policy": policy,
        "duration": trial.outcome.duration_s,
        "completed": len(completed),
        "failed": len(records) - len(completed),
        "swaps": trial.counts.swaps,
        "loads": trial.counts.loads,
        "wakes": trial.counts.wakes,
        "failed_loads": trial.counts.failed_loads,
        "evictions": trial.counts.evictions,
        "wasted_loads": num_wasted(trial.stays, answers),
        **waits("wait", [record.ttft_s for record in completed if record.ttft_s is not None]),
        "errors": dict(errors.most_common()),
    }


def waits(name: str, seconds: Sequence[float]) -> Result:
    """`p50_…_ms`, `p99_…_ms` and the largest, None where there are none."""
    ordered = sorted(second * 1000 for second in seconds)
    result: Result = {f"p{rank}_{name}_ms": percentile(ordered, rank) for rank in RANKS}
    return result | {f"max_{name}_ms": ordered[-1] if ordered else None}


def compare(trials: Sequence[Result], ours: str, theirs: str) -> list[Result]:
    """For each trace and seed that both policies have: how many times fewer swaps, and the p99 waits' ratio.

    `swaps_ratio` above 1 and `p99_wait_ratio` below 1 speak for `ours`.
    """
    by_key = {(trial["trace"], trial["seed"], trial["policy"]): trial for trial in trials}
    return [
        {
            "trace": trace,
            "seed": seed,
            "swaps_ratio": _ratio(by_key[trace, seed, theirs], by_key[trace, seed, ours], "swaps"),
            "p99_wait_ratio": _ratio(by_key[trace, seed, ours], by_key[trace, seed, theirs], "p99_wait_ms"),
        }
        for trace, seed, policy in by_key
        if policy == ours and (trace, seed, theirs) in by_key
    ]


def medians(compared: Sequence[Result]) -> list[Result]:
    """The median of each ratio over the seeds of a trace."""
    return [
        {
            "trace": trace,
            **{name: _median(compared, trace, name) for name in ("swaps_ratio", "p99_wait_ratio")},
        }
        for trace in dict.fromkeys(row["trace"] for row in compared)
    ]


def _median(compared: Sequence[Result], trace: object, name: str) -> float | None:
    values = [float(str(row[name])) for row in compared if row["trace"] == trace and row[name] is not None]
    return statistics.median(values) if values else None


def _ratio(above: Mapping[str, object], below: Mapping[str, object], name: str) -> float | None:
    numerator, denominator = above[name], below[name]
    if not isinstance(numerator, int | float) or not isinstance(denominator, int | float):
        return None
    return numerator / denominator if denominator else None
