"""What it costs to observe a request: its log line, and its spans. CPU time, best of five rounds.

    python -m benchmarks.observation_cost [--requests N]

Runs the outermost middleware around an application that only writes a timeline, and sends log lines
to /dev/null and spans to a receiver of its own that takes all and keeps none.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from starlette.types import Message, Receive, Scope, Send

from inference_server.api.middleware.observation import ObservationMiddleware, timeline_of
from inference_server.telemetry.logs import setup_logging
from inference_server.telemetry.metrics import Metrics
from inference_server.tracing.timeline import PhaseName
from inference_server.tracing.tracer import NoTracer, Tracer, tracer_for

PATH = "/v1/chat/completions"
NUM_ROUNDS = 5
SETTLE_S = 0.5
PHASES: tuple[PhaseName, ...] = ("queue", "prefill", "decode")


async def served(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers at once."""
    timeline = timeline_of(scope)
    assert timeline is not None
    timeline.model, timeline.num_prompt_tokens, timeline.num_output_tokens = "m", 100, 50
    for phase in PHASES:
        timeline.enter(phase, time.monotonic())
    timeline.leave(time.monotonic())
    timeline.finish_reasons.append("stop")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def microseconds(tracer: Tracer, num_requests: int) -> tuple[float, float]:
    """CPU time of a request: of the event loop, and of the process, which has a thread that sends spans."""
    app = ObservationMiddleware(served, metrics=Metrics(["m"]), tracer=tracer, paths={PATH})
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"host", b"localhost")]}

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        pass

    await app(dict(scope), receive, send)
    rounds = []
    for _ in range(NUM_ROUNDS):
        thread_s, process_s = time.thread_time(), time.process_time()
        for _ in range(num_requests):
            await app(dict(scope), receive, send)
        await asyncio.sleep(SETTLE_S)  # the spans of this round are sent
        rounds.append((time.thread_time() - thread_s, time.process_time() - process_s))
    return tuple(min(column) / num_requests * 1e6 for column in zip(*rounds, strict=True))  # type: ignore[return-value]


@contextmanager
def receiver() -> Iterator[str]:
    """The address of something that takes spans."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
        server.shutdown()


def main() -> None:
    """Print a line per way to observe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    num_requests = parser.parse_args().requests
    print("| observed by | event loop, µs | whole process, µs |\n|---|---|---|")
    console, sys.stderr = sys.stderr, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    with receiver() as url:
        for name, level, json_lines, address in (
            ("metrics only", "error", False, None),
            ("and a plain line", "info", False, None),
            ("and a JSON line", "info", True, None),
            ("and spans", "error", False, url),
            ("and a JSON line and spans", "info", True, url),
        ):
            setup_logging(level, json_lines=json_lines)
            logging.getLogger("opentelemetry").setLevel(logging.ERROR)
            os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "100"  # milliseconds: within the round
            tracer = tracer_for(address, {}) if address else NoTracer()
            loop_us, process_us = asyncio.run(microseconds(tracer, num_requests))
            tracer.shut_down(tracer.flush_s)
            print(f"| {name} | {loop_us:.0f} | {process_us:.0f} |")
    sys.stderr = console


if __name__ == "__main__":
    main()
