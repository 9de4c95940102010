"""One HTTP connection under limits that uvicorn lacks: size of headers, time to send and time to read.

A client that sends or reads too slowly holds memory and places of others; it is told so if it still can
be, and its connection is closed. Knows no routes: what gets through here is the application's.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from inference_server.api.errors import CODE_HEADER, envelope

MAX_PIPELINED = 16  # requests that wait for their turn on one connection


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bytes and seconds. `send_timeout_s`: how long a client may leave unread what has to go first."""

    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    send_timeout_s: float


class _Phase(enum.Enum):
    """What the client is sending. IDLE → HEAD → BODY → IDLE; a request without a body passes BODY at once."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with these limits. One per connection; owner: the event loop."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._phase = _Phase.IDLE
        self._has_turned = False  # to another phase, with the data at hand
        self._has_progressed = False
        self._num_idle_bytes = 0  # that have come since the last progress
        self._is_refused = False
        self._answering: RequestResponseCycle | None = None
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request has as long as any other."""
        super().connection_made(transport)
        self._wait(self._limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more; the request that is being answered hears of it."""
        self._wait(None)
        self.resume_writing()
        super().connection_lost(exc)
        # uvicorn tells the newest request only, which of several in a row is not the one that runs
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what has come; count what makes no progress: endless headers, trailers, chunk extensions."""
        if self._is_refused:
            return
        self._has_turned = self._has_progressed = False
        self._unset_keepalive_if_required()
        self._feed(data)
        self._after_data(len(data))

    def _after_data(self, num_bytes: int) -> None:
        if self._is_refused:
            return
        if self._has_turned:
            self._wait(self._limit_s())
        elif not self._has_progressed:
            self._count_idle(num_bytes)

    def pause_writing(self) -> None:
        """The client does not read what it was sent."""
        super().pause_writing()
        if self._sending is None:
            self._sending = self.loop.call_later(self._limits.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for long. What is unread then stays unread, and `close` would wait for it."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    # ------------------------------------------------------------ the parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._enter(_Phase.HEAD)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. One behind the body (a trailer) is not kept: it could pass for one that was checked."""
        if self._phase is _Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's headers are here, and are not too large."""
        if self._is_refused or self._wants_another_protocol():
            return
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._refuse_if_too_large(num_bytes):
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            message = f"more than {MAX_PIPELINED} requests wait on this connection"
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, message, "queue_full")
            return
        super().on_headers_complete()
        self._enter(_Phase.BODY)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._has_progressed = True
        self._num_idle_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is here."""
        if not (self._is_refused or self._wants_another_protocol()):
            self._enter(_Phase.IDLE)
            super().on_message_complete()

    # ------------------------------------------------------------ what uvicorn does otherwise

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as wish:
            if self._wants_another_protocol():
                rest = data[wish.args[0] :]
                head = self._head_without_the_wish()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
                self._feed(head + rest)
        except httptools.HttpParserError:
            self.send_400_response("")

    def _wants_another_protocol(self) -> bool:
        """`Upgrade: h2c`, as Java's client sends it. The parser would take the body for that protocol's."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_the_wish(self) -> bytes:
        version = self.parser.get_http_version().encode("ascii")
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told in our envelope."""
        self._refuse(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP request", "invalid_value")

    # ------------------------------------------------------------ limits

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._has_turned = self._has_progressed = True
        self._num_idle_bytes = 0

    def _limit_s(self) -> float | None:
        """How long the client may take for what it is sending."""
        match self._phase:
            case _Phase.IDLE:
                return None  # uvicorn's limit on idle connections
            case _Phase.HEAD:
                return self._limits.header_timeout_s
            case _Phase.BODY:
                return self._limits.body_timeout_s

    def _wait(self, seconds: float | None) -> None:
        """Wait so long for the client; None: for nothing."""
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        if seconds is not None:
            self._receiving = self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._receiving = None
        if self.flow.read_paused:
            self._wait(self._limit_s())  # it is this side that does not listen
            return
        part = "headers" if self._phase is _Phase.HEAD else "body"
        message = f"the request's {part} did not come in time"
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT, message, "request_timeout", says=self._phase is not _Phase.IDLE
        )

    def _count_idle(self, num_bytes: int) -> None:
        """Bytes that began nothing and are no body: an endless head, trailers, chunk extensions."""
        self._num_idle_bytes += num_bytes
        if self._phase is _Phase.IDLE and self._receiving is None:
            self._wait(self._limits.header_timeout_s)
        self._refuse_if_too_large(self._num_idle_bytes)

    def _refuse_if_too_large(self, num_bytes: int) -> bool:
        limit = self._limits.max_header_bytes
        if num_bytes <= limit:
            return False
        message = f"the request's headers have more than {limit} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, "headers_too_large")
        return True

    # ------------------------------------------------------------ refusals

    def _refuse(self, status: HTTPStatus, message: str, code: str, *, says: bool = True) -> None:
        """Hear no more from this client. Answers that are due go out first: a refusal would pass for one."""
        self._is_refused = True
        self._wait(None)
        refused = self.cycle if self._phase is _Phase.BODY else None
        if self.pipeline and self.pipeline[0][0] is refused:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is not None and last is not refused and not last.response_complete:
            last.keep_alive = False
            return
        if refused is not None:
            says = says and not refused.response_started
            refused.disconnected = True
            refused.message_event.set()
        if not self.transport.is_closing():
            if says:
                self.transport.write(_refusal(status, message, code))
            self.transport.close()


def _refusal(status: HTTPStatus, message: str, code: str) -> bytes:
    body = envelope(message, "invalid_request_error", None, code)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        f"{CODE_HEADER}: {code}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
