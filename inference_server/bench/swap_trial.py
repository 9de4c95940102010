"""One trace against one server: requests at their times, and what the server's models did meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import httpx
import uvloop

from inference_server.bench.client import LoadClient, RequestRecord
from inference_server.bench.load import LoadDriver, LoadOutcome
from inference_server.bench.options import SwapOptions
from inference_server.bench.swap_counts import Stay, SwapCounts, counts_in
from inference_server.bench.swap_server import Lifecycle
from inference_server.bench.swap_traces import Trace
from inference_server.bench.workload import Workload, make_prompt

_POLL_S = 0.1
_TIMEOUT = httpx.Timeout(1800.0, connect=30.0)
_IN_MEMORY = frozenset({"loaded", "draining"})


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a trace: its records in order with the model of each, counters, stays in memory."""

    trace: Trace
    models: tuple[str, ...]
    outcome: LoadOutcome
    counts: SwapCounts
    stays: tuple[Stay, ...]


def run_trial(
    server: Lifecycle,
    trace: Trace,
    names: Sequence[str],
    options: SwapOptions,
    *,
    max_concurrency: int | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Trial:
    """Send the trace's requests, model number i being `names[i]`; `on_done` is called after each.

    Raises:
        Unavailable: the server's counters cannot be read.
    """
    before = counts_in(server.metrics())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        models = tuple(names[index] for index in trace.models)
        outcome, stays = runner.run(_run(server, trace, models, options, max_concurrency, on_done))
    return Trial(trace, models, outcome, counts_in(server.metrics()).since(before), stays)


async def _run(
    server: Lifecycle,
    trace: Trace,
    models: Sequence[str],
    options: SwapOptions,
    max_concurrency: int | None,
    on_done: Callable[[], None],
) -> tuple[LoadOutcome, tuple[Stay, ...]]:
    async with _http(server) as http, Watch(http) as watch:
        clients = {name: _client(http, server, name, options) for name in set(models)}
        prompts = _prompts(len(models), options.input_len, trace.seed or 0)
        routes = {prompt: clients[name] for prompt, name in zip(prompts, models, strict=True)}

        async def send(prompt: str) -> RequestRecord:
            return await routes[prompt].send(prompt)

        driver = LoadDriver(send, max_concurrency=max_concurrency, on_done=on_done)
        outcome = await driver.run(Workload(prompts, trace.arrivals_s))
    return outcome, watch.stays()


@contextlib.asynccontextmanager
async def _http(server: Lifecycle) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=server.base_url, headers=headers, timeout=_TIMEOUT, limits=limits
    ) as http:
        yield http


def _client(http: httpx.AsyncClient, server: Lifecycle, name: str, options: SwapOptions) -> LoadClient:
    extras = {"stream_options": {"include_usage": True}, "ignore_eos": True}
    return LoadClient(
        http, base_url=server.base_url, model=name, output_len=options.output_len, extras=extras
    )


def _prompts(num_prompts: int, input_len: int, seed: int) -> tuple[str, ...]:
    """Distinct prompts, behind a label that no earlier trial had."""
    rng, label = random.Random(seed), secrets.token_hex(4)
    return tuple(make_prompt(f"{label}.{index}", input_len, rng) for index in range(num_prompts))


class Watch:
    """Follows which models are in memory, by asking a few times a second while the context lasts.

    A stay is taken as long as it can have been: from the last look that missed it to the first that did.
    """

    def __init__(self, http: httpx.AsyncClient, clock: Callable[[], float] = time.perf_counter) -> None:
        self._http = http
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._looked_s = clock()
        self._since_s: dict[str, float] = {}
        self._ended: list[Stay] = []

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def stays(self) -> tuple[Stay, ...]:
        """All of them, those that last included."""
        return (*self._ended, *(Stay(model, since_s) for model, since_s in self._since_s.items()))

    def look(self, in_memory: set[str]) -> None:
        """These models are in memory now."""
        now_s = self._clock()
        for model in in_memory - self._since_s.keys():
            self._since_s[model] = self._looked_s
        for model in self._since_s.keys() - in_memory:
            self._ended.append(Stay(model, self._since_s.pop(model), now_s))
        self._looked_s = now_s

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                response = await self._http.get("/v1/models")
                if response.is_success:
                    entries = response.json()["data"]
                    self.look({entry["id"] for entry in entries if entry.get("status") in _IN_MEMORY})
            await asyncio.sleep(_POLL_S)
