"""Runs the servers, each alone, round after round, and keeps what each run gave. It knows no one server."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.peers.servers import Server, Started
from inference_server.bench.measurement import measure, result_of
from inference_server.bench.options import LoadOptions, ReportOptions
from inference_server.bench.server_process import free_port, running
from inference_server.bench.statistics import Result
from inference_server.bench.target import Target
from inference_server.errors import Unavailable

READY_TIMEOUT_S = 1200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The load that every server gets. Closed loop: `requests_per_stream` each, at least `min_requests`."""

    levels: tuple[int, ...] = (1, 4, 16, 32)
    requests_per_stream: int = 2
    min_requests: int = 8
    num_warmup: int = 4
    input_len: int = 150
    output_len: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One server in one round. `error` says why there are no results, if there are none."""

    key: str
    round: int
    first_answer_s: float | None = None
    levels: dict[int, Result] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether the server ran and answered everything."""
        return self.error is None and not any(result["failed"] for result in self.levels.values())


def run_rounds(
    starts: Sequence[tuple[Server, Callable[[int], Started]]],
    plan: Plan,
    num_rounds: int,
    say: Callable[[str], None],
) -> Iterator[Run]:
    """A B C, A B C, …: what drifts on a shared machine hits every server alike."""
    for number in range(1, num_rounds + 1):
        for server, started in starts:
            say(f"round {number}: {server.name}")
            yield _run(server.key, started(free_port()), plan, number, say)


def _run(key: str, started: Started, plan: Plan, number: int, say: Callable[[str], None]) -> Run:
    levels: dict[int, Result] = {}
    first_answer_s = None
    try:
        with (
            tempfile.TemporaryDirectory(prefix="helixflow-peers-") as folder,
            running(started, Path(folder) / "server.log") as server,
        ):
            server.wait_until(started.ready_path, READY_TIMEOUT_S)
            _first_answer(started)
            first_answer_s = time.perf_counter() - server.start_s
            say(f"  first answer after {first_answer_s:.1f} s")
            _level(started, plan, 2, plan.num_warmup, f"r{number}.warm")
            for streams in plan.levels:
                count = max(plan.min_requests, streams * plan.requests_per_stream)
                levels[streams] = _level(started, plan, streams, count, f"r{number}.s{streams}")
                say(f"  {streams} streams: {levels[streams]['output_throughput']:.1f} output tok/s")
    except Unavailable as error:
        say(f"  failed: {error.message}")
        return Run(key=key, round=number, first_answer_s=first_answer_s, levels=levels, error=error.message)
    return Run(key=key, round=number, first_answer_s=first_answer_s, levels=levels)


def _level(started: Started, plan: Plan, streams: int, count: int, label: str) -> Result:
    """One closed loop. The label makes its prompts new to this server and the same for all servers."""
    load = LoadOptions(
        num_prompts=count,
        max_concurrency=streams,
        input_len=plan.input_len,
        output_len=plan.output_len,
        ignore_eos=True,
        seed=streams,
        label=label,
        reuse_connections=False,
    )
    return result_of(measure(Target(started.base_url, started.model), load), ReportOptions())


def _first_answer(started: Started) -> None:
    """One chat of one token: a server is ready when it answers, whatever its health page says.

    Raises:
        Unavailable: it did not.
    """
    message = {"role": "user", "content": "Hello."}
    body = {"model": started.model, "messages": [message], "max_tokens": 1}
    try:
        response = httpx.post(f"{started.base_url}/v1/chat/completions", json=body, timeout=READY_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise Unavailable(f"the first chat failed: {error or type(error).__name__}") from error
    if not response.is_success:
        raise Unavailable(f"the first chat got status {response.status_code}: {response.text[:500]}")
