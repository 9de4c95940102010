"""A client that leaves ends the work done for it, at whatever point that work is."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive


class ClientDisconnected(Exception):  # noqa: N818
    """Nobody is there to read the answer."""


class CancelOnDisconnect:
    """Async context manager: cancels its block when the client leaves. The body must have been read.

    Raises ClientDisconnected in place of that cancellation; a cancellation from elsewhere stays one.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False
        self._task: asyncio.Task[object] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._watch = asyncio.create_task(self._wait())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if not self._has_left or self._task is None:
            return
        others = self._task.uncancel()
        if kind is asyncio.CancelledError and others == 0:
            raise ClientDisconnected from None

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        if self._task is not None:
            self._task.cancel()
