"""What counting costs on the hot path: microseconds per step, token and request, and the share of it all.

The table times the calls alone, best of several rounds, with everything that a request and a step count.
The line below it sets them beside all that the server process does for a token: a server of its own streams
from a scripted model, and the processor time of its threads is divided by the tokens.

`python -m benchmarks.metrics_cost [--rounds N] [--streams N] [--tokens N]`
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks.scrape_cost import cpu_during
from inference_server.bench.server_process import free_port
from inference_server.bench.target import HelixFlowLaunch, own_server
from inference_server.generation.recorder import RequestRecorder
from inference_server.telemetry.metrics import Metrics
from inference_server.types import EngineStats, FinishReason

CALLS = 5000
MODEL = "m"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=500)
    arguments = parser.parse_args()
    step_us, token_us, request_us = (
        best_us(work, arguments.rounds) for work in (count_steps, count_tokens, count_requests)
    )
    print("| what is counted | µs |")
    print("|---|---|")
    print(f"| a step | {step_us:.2f} |")
    print(f"| a token of a stream | {token_us:.2f} |")
    print(f"| a request, without its tokens | {request_us:.2f} |")
    served_us = asyncio.run(served_token_us(arguments.streams, arguments.tokens))
    counted_us = step_us / arguments.streams + token_us + request_us / arguments.tokens
    print(f"\n{arguments.streams} streams of {arguments.tokens} tokens: the server process computes")
    print(
        f"{served_us:.0f} µs per token; {counted_us:.2f} µs of it ({counted_us / served_us:.1%}) are counting"
    )


def best_us(work: Callable[[Metrics], None], rounds: int) -> float:
    """Microseconds per call, in the fastest of several rounds of `CALLS` calls."""
    metrics = Metrics([MODEL])
    best_s = float("inf")
    for _ in range(rounds):
        started_s = time.perf_counter()
        work(metrics)
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s / CALLS * 1e6


def count_steps(metrics: Metrics) -> None:
    """Steps of a worker with four sequences, whose counters grow."""
    metrics.on_state(MODEL, "unloaded")
    for number in range(CALLS):
        stats = EngineStats(
            num_running=4,
            kv_cache_usage=0.5,
            prefix_cache_queries=number,
            prefix_cache_hits=number,
            step_num_tokens=4,
            step_num_seqs=4,
            step_seconds=0.01,
        )
        metrics.on_step(MODEL, stats)


def count_tokens(metrics: Metrics) -> None:
    """Tokens of one answer, one by one."""
    answer = RequestRecorder(metrics, MODEL, time.monotonic).submitted()
    for _ in range(CALLS):
        answer.tokens(1)


def count_requests(metrics: Metrics) -> None:
    """Requests with an answer of one token, and what HTTP counts around them."""
    for _ in range(CALLS):
        metrics.connections.inc()
        request = RequestRecorder(metrics, MODEL, time.monotonic)
        request.leased()
        request.prompt(100)
        answer = request.submitted()
        answer.tokens(1)
        answer.finished(FinishReason.STOP, 1)
        request.completed()
        metrics.connections.dec()
        metrics.http_duration.labels("POST", "/v1/chat/completions", "200").observe(1.0)


async def served_token_us(num_streams: int, num_tokens: int) -> float:
    """Microseconds that a server process computes per streamed token, all in all."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "models.yaml"
        source = f"scripted:?output_tokens={num_tokens}&step_ms=5"
        config.write_text(f"models: {{{MODEL}: {{source: '{source}', preload: true}}}}\n", encoding="utf-8")
        with own_server(HelixFlowLaunch(free_port(), ("--config", str(config)))) as server:
            await stream(server.base_url, num_streams, 10)
            served = asyncio.to_thread(
                cpu_during, server.pid, lambda: asyncio.run(stream(server.base_url, num_streams, num_tokens))
            )
            return await served / (num_streams * num_tokens) * 1e6


async def stream(base_url: str, num_streams: int, num_tokens: int) -> None:
    """So many streams at once, each to its end."""
    body = {"model": MODEL, "stream": True, "max_tokens": num_tokens}
    body["messages"] = [{"role": "user", "content": "hello"}]
    async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:

        async def one() -> None:
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for _ in response.aiter_raw():
                    pass

        await asyncio.gather(*(one() for _ in range(num_streams)))


if __name__ == "__main__":
    main()
