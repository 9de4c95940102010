"""HTTP/2 clients through the proxies: requests share a connection, and streams come as they are made."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.rolling.proxies import Proxy, proxies
from tests.rolling.replicas import Replica

MODELS = "models: {slow: {source: 'scripted:?output_tokens=100000&step_ms=50', preload: true}}\n"
STEP_S = 0.05


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Proxy]]:
    """Both proxies over one replica."""
    folder = tmp_path_factory.mktemp("http2")
    replica = Replica(folder, MODELS)
    try:
        replica.wait_until_ready()
        with proxies(folder, [replica.port]) as through:
            yield through
    finally:
        replica.kill()


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks HTTP/2 alone, from the first byte on, over one connection."""
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        base_url=proxy.url, http1=False, http2=True, limits=limits, timeout=30
    ) as found:
        yield found


def body(num_tokens: int, *, stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "hi"}]
    return {
        "model": "slow",
        "messages": messages,
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": stream,
    }


async def arrivals(client: httpx.AsyncClient, num_tokens: int) -> list[float]:
    """When each piece of text came, by the monotonic clock."""
    times = []
    async with client.stream("POST", "/v1/chat/completions", json=body(num_tokens, stream=True)) as response:
        assert (response.status_code, response.http_version) == (200, "HTTP/2")
        assert response.headers["content-type"].startswith("text/event-stream")
        last = ""
        async for line in response.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
            last = line or last
    assert last == "data: [DONE]"
    return times


@pytest.mark.parametrize("which", [0, 1], ids=["envoy", "haproxy"])
def test_streams_share_a_connection_and_no_proxy_holds_their_tokens_back(
    through: tuple[Proxy, Proxy], which: int
) -> None:
    async def scenario() -> None:
        async with client(through[which]) as http2:
            whole = http2.post("/v1/chat/completions", json=body(4, stream=False))
            *streams, answer = await asyncio.gather(*(arrivals(http2, 20) for _ in range(3)), whole)
        assert answer.json()["usage"]["completion_tokens"] == 4
        for times in streams:
            assert len(times) == 20
            # Held back, they would all come at the end.
            assert times[-1] - times[0] > 0.6 * 19 * STEP_S

    asyncio.run(scenario())


@pytest.mark.parametrize("which", [0, 1], ids=["envoy", "haproxy"])
def test_what_is_about_one_replica_is_not_to_be_had_through_the_proxy(
    through: tuple[Proxy, Proxy], which: int
) -> None:
    async def scenario() -> None:
        async with client(through[which]) as http2:
            for path in ("/metrics", "/metrics/epp", "/models", "/models/load", "/api/ps", "/v1/../metrics"):
                assert (await http2.get(path)).status_code == 404, path
            assert (await http2.get("/v1/models")).json()["data"][0]["id"] == "slow"

    asyncio.run(scenario())
