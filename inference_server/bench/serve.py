"""`bench serve`: one load against one server, from checked flags to the report and the exit status."""

from __future__ import annotations

import asyncio
import datetime
import random
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx
import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inference_server.bench.client import LoadClient, StreamFailed
from inference_server.bench.load import LoadDriver, LoadOutcome
from inference_server.bench.report import print_result, save_result, to_json
from inference_server.bench.statistics import Result, summarise
from inference_server.bench.workload import make_prompt, make_workload

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_REFUSALS = (400, 422)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to measure. `request_rate` may be infinite; `goals_ms` maps metrics to limits."""

    base_url: str
    model: str
    api_key: str | None
    num_prompts: int
    max_concurrency: int | None
    request_rate: float
    burstiness: float
    input_len: int
    output_len: int
    ignore_eos: bool
    seed: int
    metrics: tuple[str, ...]
    goals_ms: Mapping[str, float]


def run_serve(args: Namespace) -> int:
    """Measure, report, save. The exit status is 1 if a request failed or the server could not be used."""
    options = options_from(args)
    errors = Console(stderr=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, _progress(errors, options) as tick:
            result = runner.run(measure(options, tick))
    except (StreamFailed, httpx.HTTPError, msgspec.DecodeError) as error:
        what = str(error) or type(error).__name__
        errors.print(f"{options.base_url} does not serve {options.model}: {what}", markup=False)
        return 1
    _report(result, options, as_json=args.json, out=sys.stdout)
    if args.save_result:
        try:
            save_result(Path(args.save_result), result)
        except OSError as error:
            errors.print(f"cannot write {args.save_result}: {error.strerror}", markup=False)
            return 1
    return 1 if result["failed"] else 0


def options_from(args: Namespace) -> ServeOptions:
    """The flags of `bench serve`, as the command line has checked them."""
    goals = (goal.partition(":") for goal in args.goodput or ())
    return ServeOptions(
        base_url=args.base_url,
        model=args.model,
        api_key=args.api_key,
        num_prompts=args.num_prompts,
        max_concurrency=args.max_concurrency,
        request_rate=args.request_rate,
        burstiness=args.burstiness,
        input_len=args.random_input_len,
        output_len=args.output_len,
        ignore_eos=args.ignore_eos,
        seed=args.seed,
        metrics=tuple(dict.fromkeys(args.percentile_metrics.split(","))),
        goals_ms={metric: float(limit) for metric, _, limit in goals},
    )


async def measure(options: ServeOptions, on_done: Callable[[], None]) -> Result:
    """One unmeasured request, then the load.

    Raises:
        StreamFailed, httpx.HTTPError, msgspec.DecodeError: the first request failed, so that there is
            nothing to measure.
    """
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, limits=limits) as http:
        client, notes = await negotiate(http, options)
        workload = make_workload(
            options.num_prompts,
            input_len=options.input_len,
            request_rate=options.request_rate,
            burstiness=options.burstiness,
            seed=options.seed,
            label=secrets.token_hex(4),
        )
        driver = LoadDriver(client.send, max_concurrency=options.max_concurrency, on_done=on_done)
        outcome = await driver.run(workload)
    return _result(options, outcome, notes)


async def negotiate(http: httpx.AsyncClient, options: ServeOptions) -> tuple[LoadClient, list[str]]:
    """A client that sends only the extra fields that this server takes, and notes on what it does not.

    The trial requests also load the model and warm it up. Not every server knows `ignore_eos` or
    `stream_options`, and those are to be measured too.
    """
    extras: dict[str, object] = {"stream_options": {"include_usage": True}}
    if options.ignore_eos:
        extras["ignore_eos"] = True
    names = tuple(extras)
    dropping: tuple[tuple[str, ...], ...] = ((), *((name,) for name in names))
    if len(names) > 1:
        dropping += (names,)
    trial = secrets.token_hex(4)
    refusal: StreamFailed | None = None
    for dropped in dropping:
        kept = {name: value for name, value in extras.items() if name not in dropped}
        client = LoadClient(
            http,
            base_url=options.base_url,
            model=options.model,
            output_len=options.output_len,
            extras=kept,
        )
        try:
            answer = await client.stream(make_prompt(trial, options.input_len, random.Random(options.seed)))
        except StreamFailed as error:
            if error.status not in _REFUSALS:
                raise
            refusal = refusal or error
            continue
        return client, _notes(dropped, has_usage=answer.usage is not None)
    raise refusal or StreamFailed("no request was taken")


def _notes(dropped: tuple[str, ...], *, has_usage: bool) -> list[str]:
    notes = [f"the server refuses {name}; requests were sent without it" for name in dropped]
    if "ignore_eos" in dropped:
        notes.append("answers may be shorter than --output-len")
    if not has_usage:
        notes.append("the server reports no usage: output tokens are pieces of text, input tokens unknown")
    return notes


def _result(options: ServeOptions, outcome: LoadOutcome, notes: list[str]) -> Result:
    rate = options.request_rate
    settings: Result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base_url": options.base_url,
        "model": options.model,
        "num_prompts": options.num_prompts,
        "max_concurrency": options.max_concurrency,
        "request_rate": "inf" if rate == float("inf") else rate,
        "burstiness": options.burstiness,
        "random_input_len": options.input_len,
        "output_len": options.output_len,
        "ignore_eos": options.ignore_eos,
        "seed": options.seed,
        "goodput": dict(options.goals_ms),
    }
    summary = summarise(outcome, metrics=options.metrics, goals_ms=options.goals_ms)
    return settings | summary | {"notes": notes}


def _report(result: Result, options: ServeOptions, *, as_json: bool, out: TextIO) -> None:
    if as_json:
        out.write(to_json(result) + "\n")
    else:
        print_result(Console(file=out), result, options.metrics)


@contextmanager
def _progress(console: Console, options: ServeOptions) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; yields the function that moves it by one."""
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("requests", total=options.num_prompts)
        yield lambda: progress.advance(task)
