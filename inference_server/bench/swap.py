"""`bench swap`: more models than fit in memory, under traces that make them take turns.

First the costs: a cold load, a wake, what the resident models serve together. Then every trace under every
policy, each on a fresh server, so that none profits from what another has left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from inference_server.bench.measurement import now
from inference_server.bench.options import ReportOptions, SwapOptions
from inference_server.bench.report import check_files, deliver, failures, progress
from inference_server.bench.statistics import Result
from inference_server.bench.swap_server import (
    POLICIES,
    Lifecycle,
    Policy,
    model_names,
    own_swap_server,
    running_swap_server,
)
from inference_server.bench.swap_statistics import compare, medians, summarise_trial, waits
from inference_server.bench.swap_tables import print_swap
from inference_server.bench.swap_traces import Trace, burst, traces_of
from inference_server.bench.swap_trial import run_trial
from inference_server.errors import Unavailable

_ROUNDS_OF_CAPACITY = 8  # requests of each stream while the capacity is measured
_AS_CONFIGURED = Policy("as-configured", {})
_NO_SLEEP = "models of this server cannot sleep, so there is no wake to measure"

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a swap takes and what the resident models serve. Times are seconds to the first token."""

    model_bytes: int
    capacity: float  # requests per second
    cold_s: tuple[float, ...]
    wake_s: tuple[float, ...]


def run_swap(options: SwapOptions, report: ReportOptions) -> int:
    """Measure, report, save. The exit status is 1 if a request failed.

    Raises:
        Unavailable: a server did not come up, or a model could not be had.
        ConfigError: a file cannot be written.
    """
    check_files(report)
    names = options.names or model_names(options.num_models)
    with _server(options, POLICIES[0], None) as server:
        costs = measure_costs(server, names, options)
    traces = traces_of(options, costs.capacity * options.load)
    policies = POLICIES if options.base_url is None else (_AS_CONFIGURED,)
    total = sum(len(trace.models) for trace in traces) * len(policies)
    with progress("requests", total) as tick:
        trials = [
            _trial(options, policy, costs, trace, names, tick) for trace in traces for policy in policies
        ]
    result = _result(options, costs, trials)
    deliver(result, report, show=print_swap, draw=lambda: "")
    return failures(trials)


def measure_costs(server: Lifecycle, names: Sequence[str], options: SwapOptions) -> Costs:
    """Load, sleep and wake each model in turn, then ask the resident ones all at once.

    Raises:
        Unavailable: a request was not answered.
    """
    server.load(names[0])
    server.unload(names[0])  # the next plan knows what the first load has measured
    cold_s, wake_s = [], []
    for _ in range(options.num_rounds):
        for name in names:
            cold_s.append(_first_token_s(server, name, options))
            if server.sleep(name):
                wake_s.append(_first_token_s(server, name, options))
            model_bytes = server.memory_bytes(name)
            server.unload(name)
    return Costs(model_bytes, _capacity(server, names, options), tuple(cold_s), tuple(wake_s))


def _first_token_s(server: Lifecycle, name: str, options: SwapOptions) -> float:
    record = run_trial(server, Trace("one", (0.0,), (0,)), [name], options).outcome.records[0]
    if record.error is not None or record.ttft_s is None:
        raise Unavailable(
            f"{server.base_url} does not serve {name}: {record.error or 'an answer without text'}"
        )
    return record.ttft_s


def _capacity(server: Lifecycle, names: Sequence[str], options: SwapOptions) -> float:
    """Requests per second that the resident models answer together, with `streams` at once."""
    resident = names[: options.num_resident]
    for name in resident:
        server.load(name)
    trace = burst(options.streams * _ROUNDS_OF_CAPACITY, len(resident))
    outcome = run_trial(server, trace, resident, options, max_concurrency=options.streams).outcome
    for name in resident:
        server.unload(name)
    failed = next((record.error for record in outcome.records if record.error is not None), None)
    if failed is not None:
        raise Unavailable(f"a request failed while the capacity was measured: {failed}")
    return len(outcome.records) / outcome.duration_s


def _trial(
    options: SwapOptions, policy: Policy, costs: Costs, trace: Trace, names: Sequence[str], tick: Tick
) -> Result:
    with _server(options, policy, budget_bytes(costs.model_bytes, options.num_resident)) as server:
        trial = run_trial(server, trace, names, options, on_done=tick)
    return summarise_trial(trial, policy.name)


def budget_bytes(model_bytes: int, num_resident: int) -> int:
    """Room for exactly so many models of this size, also if a later plan differs by a few percent."""
    return model_bytes * num_resident + model_bytes // 2


@contextlib.contextmanager
def _server(options: SwapOptions, policy: Policy, host_bytes: int | None) -> Iterator[Lifecycle]:
    if options.base_url is not None:
        with running_swap_server(options) as server:
            yield server
    else:
        with own_swap_server(options, policy, host_bytes) as server:
            yield server


def _result(options: SwapOptions, costs: Costs, trials: Sequence[Result]) -> Result:
    compared = compare(trials, POLICIES[0].name, POLICIES[1].name)
    return {
        "date": now(),
        "base_url": options.base_url,
        "model": options.entry.get("source"),
        "num_models": options.num_models,
        "num_resident": options.num_resident,
        "model_bytes": costs.model_bytes,
        "budget_bytes": (
            budget_bytes(costs.model_bytes, options.num_resident) if options.base_url is None else None
        ),
        "output_len": options.output_len,
        "input_len": options.input_len,
        "exponent": options.exponent,
        "capacity": costs.capacity,
        "request_rate": costs.capacity * options.load,
        "num_cold": len(costs.cold_s),
        **waits("cold", costs.cold_s),
        "num_wake": len(costs.wake_s),
        **waits("wake", costs.wake_s),
        "trials": list(trials),
        "compared": compared,
        "medians": medians(compared),
        "notes": [] if costs.wake_s else [_NO_SLEEP],
    }
