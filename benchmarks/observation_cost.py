"""What it costs to observe a request: its log line, and its spans. Microseconds of the server's event loop.

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


async def microseconds(tracer: Tracer, num_requests: int) -> float:
    """Mean time of a request."""
    app = ObservationMiddleware(served, metrics=Metrics(["m"]), tracer=tracer, paths={PATH})
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"host", b"localhost")]}

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        pass

    await app(dict(scope), receive, send)
    started_s = time.perf_counter()
    for _ in range(num_requests):
        await app(dict(scope), receive, send)
        await asyncio.sleep(0)
    return (time.perf_counter() - started_s) / num_requests * 1e6


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
    parser.add_argument("--requests", type=int, default=5000)
    num_requests = parser.parse_args().requests
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
            tracer = tracer_for(address, {}) if address else NoTracer()
            cost_us = asyncio.run(microseconds(tracer, num_requests))
            tracer.shut_down()
            print(f"{name:<28}{cost_us:8.1f} µs")
    sys.stderr = console


if __name__ == "__main__":
    main()
