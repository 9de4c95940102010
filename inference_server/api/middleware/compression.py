"""gzip for large answers in one piece, for clients that ask for it. Streams pass untouched, headers at once.

(Starlette's own middleware holds a stream's headers back until its first piece, which here may be a model's
load away.) Compression takes about 10 ms per MB: what is large is compressed in a thread.
"""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_BYTES = 2048  # a packet or two: less is not worth it
THREAD_BYTES = 64 * 1024
LEVEL = 1  # JSON of numbers and text: a higher level takes thrice the time for a tenth of the bytes
_TYPES = ("application/json", "text/plain", "application/openmetrics-text")


class CompressionMiddleware:
    """Compresses one-piece answers of `MIN_BYTES` and more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its answer comes back through here if the client takes gzip."""
        if scope["type"] != "http" or not takes_gzip(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        held: Message | None = None

        async def sending(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and _is_worthwhile(message):
                held = message  # until its body, which is the next message, is compressed
                return
            if held is not None:
                start, held = held, None
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    message = await _compressed(start, message)
                await send(start)
            await send(message)

        await self._app(scope, receive, sending)


def takes_gzip(headers: Headers) -> bool:
    """Whether the client has said so, and not with a quality of 0 (RFC 9110, 12.5.3)."""
    for part in ",".join(headers.getlist("accept-encoding")).split(","):
        coding, _, parameters = part.partition(";")
        if coding.strip().lower() in ("gzip", "x-gzip"):
            quality = parameters.strip().lower().removeprefix("q=").strip()
            return not quality or quality.rstrip("0.") != ""
    return False


def _is_worthwhile(start: Message) -> bool:
    headers = Headers(raw=start.get("headers", []))
    length = headers.get("content-length", "")
    is_large = length.isdecimal() and int(length) >= MIN_BYTES
    return (
        is_large and "content-encoding" not in headers and headers.get("content-type", "").startswith(_TYPES)
    )


async def _compressed(start: Message, message: Message) -> dict[str, Any]:
    body = message["body"]
    if len(body) >= THREAD_BYTES:
        packed = await asyncio.to_thread(gzip.compress, body, LEVEL, mtime=0)
    else:
        packed = gzip.compress(body, LEVEL, mtime=0)
    start["headers"] = list(start.get("headers", []))
    headers = MutableHeaders(raw=start["headers"])
    headers["content-encoding"] = "gzip"
    headers["content-length"] = str(len(packed))
    headers.add_vary_header("Accept-Encoding")
    if etag := headers.get("etag"):
        headers["etag"] = etag if etag.startswith("W/") else f"W/{etag}"  # the same content in other bytes
    return {**message, "body": packed}
