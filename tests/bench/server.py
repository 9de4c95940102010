"""A small streaming chat server on a real port, in a thread, with faults on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Body = dict[str, Any]
Chunks = Iterator[bytes]


def event(payload: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(payload).encode() + b"\r\n\r\n"


def piece(text: str) -> bytes:
    """One chunk with text."""
    return event({"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def answer(body: Body) -> Chunks:
    """A good answer of `max_tokens` tokens, in the manner of OpenAI."""
    yield b": loading\n\n"
    yield event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for index in range(body["max_tokens"]):
        yield piece(f" word{index}")
    yield event({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": None})
    if body.get("stream_options"):
        yield event({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": body["max_tokens"]}})
    yield b"data: [DONE]\n\n"


class FakeServer:
    """Answers with `respond(body)`; keeps every request. A str stands for a refusal with status 400."""

    def __init__(self, respond: Callable[[Body], Chunks | str]) -> None:
        self.respond = respond
        self.bodies: list[Body] = []
        self.headers: list[str] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:")
        )
        body = json.loads(await reader.readexactly(length))
        self.headers.append(head)
        self.bodies.append(body)
        response = self.respond(body)
        if isinstance(response, str):
            content = json.dumps({"error": {"message": response}}).encode()
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + content)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for chunk in response:
                writer.write(chunk)
                await writer.drain()
        writer.close()
        await writer.wait_closed()


@contextmanager
def running(respond: Callable[[Body], Chunks | str] = answer) -> Iterator[FakeServer]:
    """The server for as long as the context lasts."""
    fake = FakeServer(respond)
    started = threading.Event()
    stop: list[Callable[[], None]] = []

    async def serve() -> None:
        server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(ended.set))
        started.set()
        async with server:
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield fake
    finally:
        stop[0]()
        thread.join(10)
