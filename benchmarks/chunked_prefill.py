"""How much a long prompt disturbs others: gaps between tokens of running streams, before and during it.

Starts a server and some streams. When each has given a number of tokens (the quiet time), one request with a
prompt of about 4,000 tokens arrives; from its sending to its first token is the disturbed time. Goal: the
99th percentile of the streams' gaps in the disturbed time is at most three times their median in the quiet
time. Exit status 1: a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx

from inference_server.bench.client import LoadClient, RequestRecord
from inference_server.bench.server_process import free_port
from inference_server.bench.statistics import percentile
from inference_server.bench.target import HelixFlowLaunch, first_model, own_server
from inference_server.bench.workload import make_prompt
from inference_server.errors import Unavailable

REPOSITORY = Path(__file__).parent.parent
GOAL = 3.0
STREAM_PROMPT_TOKENS = 150
LONG_OUTPUT_TOKENS = 4
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Gaps in seconds between texts of the streams, and what the long prompt was."""

    quiet_s: tuple[float, ...]
    disturbed_s: tuple[float, ...]
    num_prompt_tokens: int
    ttft_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "models.yaml")
    parser.add_argument("--model", help="default: the configuration's first that is loaded")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=4000, help="of the long prompt; default: 4000")
    parser.add_argument("--quiet-tokens", type=int, default=60, help="of each stream before it; default: 60")
    parser.add_argument("--max-tokens", type=int, default=1500, help="that a stream may give; default: 1500")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(argv)
    with own_server(HelixFlowLaunch(free_port(), ("--config", str(arguments.config)))) as server:
        model = arguments.model or first_model(server.base_url, None)
        try:
            found = asyncio.run(_repeated(server.base_url, model, arguments))
        except Unavailable as error:
            print(f"failed: {error.message}", file=sys.stderr)
            return 1
    print(table(found))
    return 0


async def _repeated(base_url: str, model: str, arguments: argparse.Namespace) -> list[Disturbance]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=httpx.Timeout(600.0), limits=limits) as http:
        streams = _client(http, base_url, model, arguments.max_tokens)
        single = _client(http, base_url, model, LONG_OUTPUT_TOKENS)
        input_len = await calibrated(single, arguments.prompt_tokens)
        return [
            await disturb(streams, single, arguments.streams, input_len, arguments.quiet_tokens)
            for _ in range(arguments.repeats)
        ]


def _client(http: httpx.AsyncClient, base_url: str, model: str, output_len: int) -> LoadClient:
    extras = {"ignore_eos": True, "stream_options": {"include_usage": True}}
    return LoadClient(http, base_url=base_url, model=model, output_len=output_len, extras=extras)


async def calibrated(client: LoadClient, num_tokens: int) -> int:
    """The nominal length that gives a prompt of `num_tokens` with this model's tokenizer.

    Raises:
        Unavailable: a request failed.
    """
    few, many = num_tokens // 8, num_tokens // 4
    found = [require(await client.send(_prompt(length))).num_input_tokens for length in (few, many)]
    per_unit = (found[1] - found[0]) / (many - few)
    return few + round((num_tokens - found[0]) / per_unit)


async def disturb(
    streams: LoadClient, single: LoadClient, num_streams: int, input_len: int, quiet_tokens: int
) -> Disturbance:
    """One long prompt into running streams.

    Raises:
        Unavailable: a request failed, or the streams ended too early.
    """
    times_s: list[list[float]] = [[] for _ in range(num_streams)]
    running = [
        asyncio.create_task(streams.send(_prompt(STREAM_PROMPT_TOKENS), times.append)) for times in times_s
    ]
    try:
        while any(len(times) <= quiet_tokens for times in times_s):
            _refuse_ended(running)
            await asyncio.sleep(POLL_S)
        all_started_s = max(times[0] for times in times_s)
        sent_s = time.perf_counter()
        record = require(await single.send(_prompt(input_len)))
        _refuse_ended(running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    first_s = sent_s + (record.ttft_s or record.latency_s)
    return Disturbance(
        quiet_s=quiet_gaps(times_s, all_started_s, sent_s),
        disturbed_s=disturbed_gaps(times_s, sent_s, first_s),
        num_prompt_tokens=record.num_input_tokens,
        ttft_s=first_s - sent_s,
    )


def quiet_gaps(times_s: Sequence[Sequence[float]], start_s: float, end_s: float) -> tuple[float, ...]:
    """The gaps of every stream that lie within the time."""
    return tuple(b - a for times in times_s for a, b in pairwise(times) if start_s <= a and b <= end_s)


def disturbed_gaps(times_s: Sequence[Sequence[float]], start_s: float, end_s: float) -> tuple[float, ...]:
    """The gaps of every stream that lie in the time at least in part."""
    return tuple(b - a for times in times_s for a, b in pairwise(times) if b > start_s and a < end_s)


def require(record: RequestRecord) -> RequestRecord:
    """The record of a request that was answered.

    Raises:
        Unavailable: it was not.
    """
    if record.error is not None:
        raise Unavailable(record.error)
    return record


def _refuse_ended(running: Sequence[asyncio.Task[RequestRecord]]) -> None:
    for task in running:
        if task.done():
            require(task.result())
            raise Unavailable("a stream ended before the long prompt was done; give more --max-tokens")


def _prompt(input_len: int) -> str:
    """A prompt that no cache knows."""
    return make_prompt(secrets.token_hex(4), input_len, random.Random(input_len))


def table(found: Sequence[Disturbance]) -> str:
    """All repeats together: a row for each time, and the ratio."""
    quiet = sorted(gap * 1000 for each in found for gap in each.quiet_s)
    disturbed = sorted(gap * 1000 for each in found for gap in each.disturbed_s)
    lines = ["| time | gaps | p50 ms | p90 ms | p99 ms | longest ms |", "|---|---|---|---|---|---|"]
    for name, gaps in (("quiet", quiet), ("during the prefill", disturbed)):
        ranks = " | ".join(f"{percentile(gaps, rank) or 0.0:.1f}" for rank in (50, 90, 99, 100))
        lines.append(f"| {name} | {len(gaps)} | {ranks} |")
    ratio = (percentile(disturbed, 99) or 0.0) / (percentile(quiet, 50) or float("nan"))
    verdict = "met" if ratio <= GOAL else "missed"
    lines.append(f"| p99 during ÷ quiet p50 | | | | **{ratio:.2f}** (goal {GOAL:g}: {verdict}) | |")
    prompts = ", ".join(f"{each.num_prompt_tokens} tokens in {each.ttft_s:.2f} s" for each in found)
    return "\n".join((*lines, "", f"Prefills: {prompts}."))


if __name__ == "__main__":
    sys.exit(main())
