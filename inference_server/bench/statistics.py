"""From records to the result, under vLLM's names. Pure; seconds in, milliseconds out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from inference_server.bench.client import RequestRecord
from inference_server.bench.load import LoadOutcome

PERCENTILES = (50, 90, 95, 99)
Result = dict[str, object]


def time_per_output_token_s(record: RequestRecord) -> float | None:
    """(latency − TTFT) / (output tokens − 1), the mean gap between tokens."""
    if record.ttft_s is None or record.num_output_tokens < 2:
        return None
    return (record.latency_s - record.ttft_s) / (record.num_output_tokens - 1)


def _some(value: float | None) -> Sequence[float]:
    return () if value is None else (value,)


# Metric → the values that one request adds to it.
METRICS: Mapping[str, Callable[[RequestRecord], Sequence[float]]] = {
    "ttft": lambda record: _some(record.ttft_s),
    "tpot": lambda record: _some(time_per_output_token_s(record)),
    "itl": lambda record: record.gaps_s,
    "e2el": lambda record: (record.latency_s,),
}


def summarise(outcome: LoadOutcome, *, metrics: Sequence[str], goals_ms: Mapping[str, float]) -> Result:
    """Counts, rates and the distribution of each of `metrics`.

    `request_goodput` counts the requests per second that met every goal, each by its worst value; it is None
    without goals. A metric without values has None throughout.
    """
    completed = [record for record in outcome.records if record.error is None]
    duration_s = outcome.duration_s
    num_input = sum(record.num_input_tokens for record in completed)
    num_output = sum(record.num_output_tokens for record in completed)
    num_good = sum(is_good(record, goals_ms) for record in completed)
    result: Result = {
        "duration": duration_s,
        "completed": len(completed),
        "failed": len(outcome.records) - len(completed),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "total_cached_tokens": sum(record.num_cached_tokens for record in completed),
        "request_throughput": _rate(len(completed), duration_s),
        "request_goodput": _rate(num_good, duration_s) if goals_ms else None,
        "output_throughput": _rate(num_output, duration_s),
        "total_token_throughput": _rate(num_input + num_output, duration_s),
        "max_concurrent_requests": outcome.max_concurrent,
    }
    for name in metrics:
        values_ms = [value * 1000 for record in completed for value in METRICS[name](record)]
        result |= distribution(name, values_ms)
    errors = Counter(record.error for record in outcome.records if record.error is not None)
    result["errors"] = dict(errors.most_common())
    return result


def is_good(record: RequestRecord, goals_ms: Mapping[str, float]) -> bool:
    """Whether the request met every goal; one that has no value for a metric meets its goal."""
    return all(value * 1000 <= limit for name, limit in goals_ms.items() for value in METRICS[name](record))


def distribution(name: str, values_ms: Sequence[float]) -> Result:
    """`mean_…_ms`, `median_…_ms`, `std_…_ms` (of the population) and the percentiles."""
    ordered = sorted(values_ms)
    mean = math.fsum(ordered) / len(ordered) if ordered else None
    std = None
    if mean is not None:
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / len(ordered))
    result: Result = {
        f"mean_{name}_ms": mean,
        f"median_{name}_ms": percentile(ordered, 50),
        f"std_{name}_ms": std,
    }
    return result | {f"p{rank}_{name}_ms": percentile(ordered, rank) for rank in PERCENTILES}


def percentile(ordered: Sequence[float], rank: float) -> float | None:
    """Of sorted values, with linear interpolation between neighbours; None if there are none."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * rank / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
