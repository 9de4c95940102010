"""Server-sent events: headers at once, events as they come, comments while nothing does.

An error after the first byte becomes an error event and the end of the stream, never silence. When the
client leaves, the event source is closed at once, which frees its request everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable

from starlette.types import Receive, Scope, Send

from inference_server.api.errors import envelope, error_body
from inference_server.errors import HelixFlowError

DONE = b"data: [DONE]\n\n"
HEARTBEAT_S = 1.0  # how often a comment may be due; see `EventStream`
QUIET_S = 15.0  # the longest silence
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
logger = logging.getLogger(__name__)


def event(payload: bytes) -> bytes:
    """One `data:` event."""
    return b"data: " + payload + b"\n\n"


class EventStream:
    """An ASGI response that sends `events`, and comments from `status` in between.

    `status` says what the client is waiting for (a load's progress), or None when tokens flow; a changed
    status is sent within a second, and something at least every 15 s.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], status: Callable[[], str | None]) -> None:
        self._events = events
        self._status = status
        self._last_sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs until the events end or the client leaves."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        tasks = {
            asyncio.create_task(self._pump(send)),
            asyncio.create_task(_until_disconnected(receive)),
        }
        beat = asyncio.create_task(self._beat(send))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, beat):
                task.cancel()
            await asyncio.gather(*tasks, beat, return_exceptions=True)

    async def _pump(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            try:
                async for chunk in events:
                    await self._send(send, chunk)
            except HelixFlowError as error:
                await self._send(send, event(error_body(error)))
            except Exception:
                logger.exception("a stream failed")
                body = envelope("an internal error ended the stream", "server_error", None, "internal_error")
                await self._send(send, event(body))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        said: str | None = None
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            status = self._status()
            if status is not None and status != said:
                said = status
                await self._send(send, f": {status}\n\n".encode())
            elif loop.time() - self._last_sent_s >= QUIET_S:
                await self._send(send, b": keep-alive\n\n")

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._last_sent_s = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
