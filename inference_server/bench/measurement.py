"""One load against one server: from options to records, and from records to a result."""

from __future__ import annotations

import asyncio
import datetime
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import msgspec
import uvloop

from inference_server.bench.client import StreamFailed
from inference_server.bench.load import LoadDriver, LoadOutcome
from inference_server.bench.negotiation import negotiate
from inference_server.bench.options import LoadOptions, ReportOptions
from inference_server.bench.statistics import Result, summarise
from inference_server.bench.target import Target
from inference_server.bench.workload import make_workload
from inference_server.errors import Unavailable

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was sent where, and what came of it."""

    target: Target
    load: LoadOptions
    outcome: LoadOutcome
    notes: tuple[str, ...]


def measure(target: Target, load: LoadOptions, on_done: Callable[[], None] = lambda: None) -> Measurement:
    """One unmeasured request, then the load; `on_done` is called after each request.

    Raises:
        Unavailable: the unmeasured request failed, so that there is nothing to measure.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(target, load, on_done))
    except (StreamFailed, httpx.HTTPError, msgspec.DecodeError) as error:
        what = str(error) or type(error).__name__
        raise Unavailable(f"{target.base_url} does not serve {target.model}: {what}") from error


async def _measure(target: Target, load: LoadOptions, on_done: Callable[[], None]) -> Measurement:
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=None if load.reuse_connections else 0
    )
    async with httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, limits=limits) as http:
        client, notes = await negotiate(http, target.base_url, target.model, load)
        workload = make_workload(
            load.num_prompts,
            input_len=load.input_len,
            request_rate=load.request_rate,
            burstiness=load.burstiness,
            seed=load.seed,
            label=load.label or secrets.token_hex(4),
        )
        driver = LoadDriver(client.send, max_concurrency=load.max_concurrency, on_done=on_done)
        return Measurement(target, load, await driver.run(workload), tuple(notes))


def result_of(measurement: Measurement, report: ReportOptions) -> Result:
    """Settings, figures and notes, in the order in which they are shown."""
    load = measurement.load
    settings: Result = {
        "date": now(),
        "base_url": measurement.target.base_url,
        "model": measurement.target.model,
        "num_prompts": load.num_prompts,
        "max_concurrency": load.max_concurrency,
        "request_rate": "inf" if load.request_rate == float("inf") else load.request_rate,
        "burstiness": load.burstiness,
        "random_prefix_len": load.prefix_len,
        "random_input_len": load.input_len,
        "output_len": load.output_len,
        "ignore_eos": load.ignore_eos,
        "seed": load.seed,
        "goodput": dict(report.goals_ms),
    }
    summary = summarise(measurement.outcome, metrics=report.metrics, goals_ms=report.goals_ms)
    return settings | summary | {"notes": list(measurement.notes)}


def now() -> str:
    """The date of a result."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
