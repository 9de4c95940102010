"""gzip for large answers to who asks for it; never for a stream, and never for what is small."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from inference_server.api.middleware.compression import MIN_BYTES, CompressionMiddleware, takes_gzip
from tests.server.running import RunningServer


def answered(response: Response, accept: str = "gzip") -> list[Message]:
    """The messages that the server would send."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "headers": [(b"accept-encoding", accept.encode())],
        "asgi": {"spec_version": "2.3"},
    }
    asyncio.run(CompressionMiddleware(response)(scope, receive, send))
    return sent


@pytest.mark.parametrize("size", [MIN_BYTES, 30_000, 500_000])
def test_a_large_answer_is_smaller_and_the_same(size: int) -> None:
    content = json.dumps(["x" * 10] * (size // 14 + 1)).encode()
    start, body = answered(Response(content, media_type="application/json", headers={"etag": '"a"'}))
    headers = Headers(raw=start["headers"])
    assert headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) == len(body["body"]) < len(content) / 4
    assert headers["vary"] == "Accept-Encoding"
    assert headers["etag"] == 'W/"a"'
    assert gzip.decompress(body["body"]) == content


def test_what_is_small_or_no_text_or_packed_already_is_left_alone() -> None:
    for response in (
        JSONResponse({"a": 1}),
        Response(b"x" * 10_000, media_type="image/png"),
        Response(b"x" * 10_000, media_type="application/json", headers={"content-encoding": "br"}),
        Response(status_code=304),
    ):
        assert len(answered(response)) == 2
        assert Headers(raw=answered(response)[0]["headers"]).get("content-encoding") != "gzip"


def test_a_streams_headers_go_out_before_its_first_piece() -> None:
    sent: list[Message] = []

    async def scenario() -> None:
        gate = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await gate.wait()
            await send({"type": "http.response.body", "body": b"data: x\n\n" * 1000, "more_body": False})

        async def receive() -> Message:
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {"type": "http", "headers": [(b"accept-encoding", b"gzip")]}
        running = asyncio.create_task(CompressionMiddleware(app)(scope, receive, send))
        await asyncio.sleep(0)
        assert [message["type"] for message in sent] == ["http.response.start"]
        gate.set()
        await running

    asyncio.run(scenario())
    assert sent[1]["body"].startswith(b"data: x")


def test_pieces_of_a_long_answer_pass_as_they_are() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"[" + b" " * 5000 + b"]"

    response = StreamingResponse(pieces(), media_type="application/json", headers={"content-length": "15006"})
    sent = answered(response)
    assert Headers(raw=sent[0]["headers"]).get("content-encoding") is None
    assert sum(len(message["body"]) for message in sent[1:]) == 15006


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("x-gzip", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("deflate, br", False),
        ("", False),
        ("notgzip", False),
    ],
)
def test_what_the_client_says_it_takes(accept: str, expected: bool) -> None:
    assert takes_gzip(Headers({"accept-encoding": accept})) is expected


def test_a_server_compresses_its_document_and_no_stream(server: RunningServer) -> None:
    packed = server.client.get("/openapi.json", headers={"accept-encoding": "gzip"})
    plain = server.client.get("/openapi.json", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()
    body = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"accept-encoding": "gzip"}
    streamed = server.client.post("/v1/chat/completions", json=body, headers=headers)
    assert "content-encoding" not in streamed.headers
    assert streamed.text.endswith("data: [DONE]\n\n")
