"""The server's end of one child process: its socket on the event loop, and its life through a pidfd.

Owner: the event loop. Knows frames and processes; what the messages mean is the handle's matter.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import cast

from inference_server.worker.channel import encode, frames_from_child
from inference_server.worker.protocol import FromChild, ToChild

UNREAD_S = 1.0  # for what a process sent before it ended


class ChildConnection(asyncio.Protocol):
    """Sends messages to a child, hands its messages to `on_message`, and knows when the process is gone.

    `exited` resolves once the kernel says that the process has ended (its memory is free again).
    `on_closed` runs once, when the socket closes or the stream becomes unreadable, or a moment after the
    process has ended, if a helper that it left behind holds the socket open.
    """

    def __init__(
        self,
        *,
        pid: int,
        pidfd: int,
        on_message: Callable[[FromChild], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._on_message = on_message
        self._on_closed = on_closed
        self._frames = frames_from_child()
        self._transport: asyncio.Transport | None = None
        self._last_words: asyncio.TimerHandle | None = None
        self.is_closed = False  # `on_closed` has run, or runs
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        loop.add_reader(pidfd, self._process_ended)

    async def open(self, sock: socket.socket) -> None:
        """Take over the server's half of the socketpair."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def send(self, message: ToChild) -> None:
        """Queue one message; silently dropped once the child is gone (its end is reported elsewhere)."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def kill(self) -> None:
        """SIGKILL, through the pidfd, so that a reused pid is never hit."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    async def wait_exit(self, timeout_s: float) -> bool:
        """True once the process has ended, False if it still runs after `timeout_s`."""
        done, _ = await asyncio.wait([self.exited], timeout=timeout_s)
        return bool(done)

    async def terminate(self) -> None:
        """Kill if it still runs, and return when the process is gone and the socket is closed."""
        self.kill()
        await asyncio.wait([self.exited])
        if self._transport is not None:
            self._transport.close()

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        """Called by the event loop. A damaged stream kills the child: nothing after it can be trusted."""
        try:
            for message in self._frames.feed(data):
                self._on_message(message)
        except ValueError:
            self.kill()
            self._close("sent an unreadable message")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._close("closed its channel")

    def _close(self, reason: str) -> None:
        if self._last_words is not None:
            self._last_words.cancel()
            self._last_words = None
        if not self.is_closed:
            self.is_closed = True
            self._on_closed(reason)
        if self._transport is not None:
            self._transport.close()

    def _process_ended(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if not self.exited.done():
            self.exited.set_result(None)
        if not self.is_closed:  # the socket may still hold frames; it closes by itself at EOF
            self._last_words = loop.call_later(UNREAD_S, self._close, "ended")
