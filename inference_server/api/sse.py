"""Server-sent events: the response of a stream, with comments while nothing comes and errors as events.

What fails before the headers are out is an ordinary error response; afterwards it is an error event and the
end of the stream, never silence. Knows no JSON beyond the error envelope and nothing of models.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from inference_server.api.disconnect import CancelOnDisconnect, ClientDisconnected
from inference_server.api.errors import error_body
from inference_server.api.schemas.answers import event
from inference_server.api.status import WAITING, loading_status
from inference_server.errors import HelixFlowError, InternalError, ShuttingDown
from inference_server.worker.protocol import Progress

DONE = b"data: [DONE]\n\n"
HEADERS_AFTER_S = 0.25  # a loaded model is ready by then, and what can go wrong at once has
BEAT_S = 1.0  # how soon a changed status is told
QUIET_S = 15.0  # the longest silence
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
logger = logging.getLogger(__name__)


class EventWriter:
    """The sending side of one stream. Owner: the task that writes; a timer sends comments in between.

    The comments say what the client waits for, until the first event or `ready`.
    """

    def __init__(self, send: Send, *, headers_after_s: float, beat_s: float, quiet_s: float) -> None:
        self.is_started = False
        self._status: str | None = WAITING
        self._send = send
        self._beat_s = beat_s
        self._quiet_s = quiet_s
        self._loop = asyncio.get_running_loop()
        self._last_sent_s = self._loop.time()
        self._last_status: str | None = None
        self._beat: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(headers_after_s, self._tick)

    def loading(self, progress: Progress) -> None:
        """The model that the client waits for has come this far."""
        self._status = loading_status(progress)

    def ready(self) -> None:
        """The model is there; what the client waits for now is its answer."""
        self._status = None

    async def write(self, events: bytes) -> None:
        """Send whole events, if any, after the headers if they are not out yet. Waits for a slow reader."""
        self._status = None
        if not events:
            return  # nothing goes out: a comment may be due all the same
        if self._beat is not None:
            await self._beat
        await self._write(events)

    async def finish(self) -> None:
        """Send the end of the response."""
        self._timer.cancel()
        if self._beat is not None:
            await self._beat
        if not self.is_started:
            await self._write(b"")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def stop(self) -> None:
        """Send no more comments: the stream is over, or an error response goes out in its place."""
        self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()

    async def _write(self, events: bytes) -> None:
        self._last_sent_s = self._loop.time()
        if not self.is_started:
            self.is_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._beat_s, self._tick)
        if self._beat is None and (comment := self._due()) is not None:
            self._beat = asyncio.create_task(self._write(comment))
            self._beat.add_done_callback(self._beat_done)

    def _due(self) -> bytes | None:
        if self._status is not None and self._status != self._last_status:
            self._last_status = self._status
            return f": {self._status}\n\n".encode()
        if not self.is_started or self._loop.time() - self._last_sent_s >= self._quiet_s:
            return b": keep-alive\n\n"
        return None

    def _beat_done(self, task: asyncio.Task[None]) -> None:
        self._beat = None
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a comment could not be sent: %s", task.exception())


class EventStream:
    """An ASGI response whose events `produce` writes; cancelled, at once, when the client leaves."""

    def __init__(
        self,
        produce: Callable[[EventWriter], Awaitable[None]],
        *,
        headers_after_s: float = HEADERS_AFTER_S,
        beat_s: float = BEAT_S,
        quiet_s: float = QUIET_S,
        error_event: Callable[[HelixFlowError], bytes] = lambda error: event(error_body(error)),
    ) -> None:
        """`error_event` tells of an error that ends the stream."""
        self._produce = produce
        self._error_event = error_event
        self._headers_after_s = headers_after_s
        self._beat_s = beat_s
        self._quiet_s = quiet_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs until `produce` ends.

        Raises (before the headers are out):
            ClientDisconnected: the client left.
            Exception: whatever `produce` raises.
        """
        writer = EventWriter(
            send, headers_after_s=self._headers_after_s, beat_s=self._beat_s, quiet_s=self._quiet_s
        )
        try:
            async with CancelOnDisconnect(receive):
                await self._run(writer)
        except ClientDisconnected:
            if not writer.is_started:
                raise
        except asyncio.CancelledError:  # by the server's end, which waits no longer
            if writer.is_started:
                ended = ShuttingDown("the server stopped before the stream had ended")
                await writer.write(self._error_event(ended))
                await writer.finish()
            raise
        finally:
            writer.stop()

    async def _run(self, writer: EventWriter) -> None:
        try:
            await self._produce(writer)
        except HelixFlowError as error:
            if not writer.is_started:
                raise
            await writer.write(self._error_event(error))
        except Exception:
            if not writer.is_started:
                raise
            logger.exception("a stream failed")
            await writer.write(self._error_event(InternalError("an internal error ended the stream")))
        await writer.finish()
