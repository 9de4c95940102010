"""What HTTP, validation, templates, queues and JSON cost: the server with a model that answers at once.

One server process on the first core; its worker (the built-in scripted model, one token) and this client on
the second. Three loads of non-streaming chats: one connection in a closed loop (what a request takes), many
in a closed loop (saturation), and Poisson arrivals at a fixed rate (what waits).

`python -m benchmarks.http_cost [--seconds S] [--connections N] [--rate HZ ...] [--rounds N]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import uvloop

from inference_server.bench.server_process import free_port
from inference_server.bench.target import HelixFlowLaunch, own_server

CONFIG = "models: {m: {source: 'scripted:?output_tokens=1', preload: true, kv_cache: {tokens: 65536}}}\n"
QUESTION = "What is the capital of France, and since when? Answer in one sentence, please."
WARM_UP_S = 2.0


def main() -> int:
    """Measure and print the table; 1 if any request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, nargs="+", default=[500, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        launch = HelixFlowLaunch(free_port(), ("--config", str(config)))
        with own_server(launch) as server:
            pin(server.pid, cores)
            port = int(server.base_url.rpartition(":")[2])
            print("| load | requests/s | p50 ms | p95 ms | p99 ms | failed |\n|---|---|---|---|---|---|")
            num_failed = 0
            run(closed_loop(port, arguments.connections, WARM_UP_S))
            for _ in range(arguments.rounds):
                loads = [
                    ("1 connection, closed loop", closed_loop(port, 1, arguments.seconds)),
                    (
                        f"{arguments.connections} connections, closed loop",
                        closed_loop(port, arguments.connections, arguments.seconds),
                    ),
                    *(
                        (f"{rate:.0f}/s, open loop", open_loop(port, rate, arguments.seconds))
                        for rate in arguments.rate
                    ),
                ]
                for name, load in loads:
                    found = run(load)
                    num_failed += found.num_failed
                    print(found.row(name), flush=True)
    return 1 if num_failed else 0


def run(load: Coroutine[Any, Any, Found]) -> Found:
    """One load, on a loop of its own."""
    return uvloop.run(load)


def pin(server: int, cores: list[int]) -> None:
    """The server's own threads on the first core; its children, and this process, on the last."""
    for task in Path(f"/proc/{server}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores[:1])
    for child in descendants(server):
        for task in Path(f"/proc/{child}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores[-1:])
    os.sched_setaffinity(0, cores[-1:])


def descendants(process: int) -> Iterator[int]:
    """Its children, and theirs."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text(encoding="ascii").split():
            yield int(child)
            yield from descendants(int(child))


@dataclass
class Found:
    """What one load came to. Latencies in seconds; in an open loop from when a request was due."""

    latencies: list[float] = field(default_factory=list)
    num_failed: int = 0
    seconds: float = 0.0

    def row(self, name: str) -> str:
        """Of the Markdown table."""
        ordered = sorted(self.latencies)

        def share(part: float) -> float:
            return 1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]

        rate = len(ordered) / self.seconds
        return (
            f"| {name} | {rate:.0f} | {share(0.5):.2f} | {share(0.95):.2f} | {share(0.99):.2f} "
            f"| {self.num_failed} |"
        )


async def closed_loop(port: int, num_connections: int, seconds: float) -> Found:
    """Each connection sends its next request when its last is answered."""
    found = Found()
    started_s = time.perf_counter()
    end_s = started_s + seconds

    async def one() -> None:
        connection = await connect(port)
        while (begun_s := time.perf_counter()) < end_s:
            status = await connection.ask()
            found.latencies.append(time.perf_counter() - begun_s)
            found.num_failed += status != 200
        connection.transport.close()

    await asyncio.gather(*(one() for _ in range(num_connections)))
    found.seconds = time.perf_counter() - started_s
    return found


async def open_loop(port: int, rate: float, seconds: float) -> Found:
    """Requests come at random times at this rate, however long others take."""
    found = Found()
    idle = deque([await connect(port) for _ in range(16)])
    rng = random.Random(0)
    running: set[asyncio.Task[None]] = set()

    async def one(due_s: float) -> None:
        connection = idle.popleft() if idle else await connect(port)
        status = await connection.ask()
        found.latencies.append(time.perf_counter() - due_s)
        found.num_failed += status != 200
        idle.append(connection)

    started_s = due_s = time.perf_counter()
    while due_s < started_s + seconds:
        if (wait_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(one(due_s))
        running.add(task)
        task.add_done_callback(running.discard)
        due_s += rng.expovariate(rate)
    while running:
        await asyncio.wait(running)
    found.seconds = time.perf_counter() - started_s
    for connection in idle:
        connection.transport.close()
    return found


class Connection(asyncio.Protocol):
    """One keep-alive connection, with no more work per answer than its status and its end."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[int] | None = None
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's are none by class

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits for an answer gets none."""
        self._is_lost = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(0)

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(self._parser.get_status_code())

    def ask(self) -> asyncio.Future[int]:
        """Send the request; gives the answer's status, 0 for none."""
        self._answered = asyncio.get_running_loop().create_future()
        if self._is_lost:
            self._answered.set_result(0)
        else:
            self.transport.write(REQUEST)
        return self._answered


async def connect(port: int) -> Connection:
    """A new connection."""
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return protocol


def _request() -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer x\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


REQUEST = _request()

if __name__ == "__main__":
    sys.exit(main())
