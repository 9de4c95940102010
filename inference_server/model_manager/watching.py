"""Lets others follow what happens to models: every state and the latest progress, at their own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import ModelStatus


class Watchers:
    """Everybody who follows. A slow reader gets the newest of each model and state, and costs no more."""

    def __init__(self) -> None:
        self._watches: set[_Watch] = set()

    def __bool__(self) -> bool:
        return bool(self._watches)

    def publish(self, status: ModelStatus) -> None:
        """Tell all of them."""
        for watch in self._watches:
            watch.put(status)

    @contextmanager
    def watch(self) -> Iterator[AsyncIterator[ModelStatus]]:
        """Snapshots from now on, without an end; one per state change or progress report."""
        watch = _Watch()
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)


class _Watch:
    """One reader's unread snapshots, oldest first; a newer one replaces its like."""

    def __init__(self) -> None:
        self._unread: dict[tuple[str, ModelState], ModelStatus] = {}
        self._any = asyncio.Event()

    def put(self, status: ModelStatus) -> None:
        key = (status.name, status.state)
        if next(reversed(self._unread), None) != key:
            self._unread.pop(key, None)  # what happened last comes last
        self._unread[key] = status
        self._any.set()

    def __aiter__(self) -> AsyncIterator[ModelStatus]:
        return self

    async def __anext__(self) -> ModelStatus:
        while not self._unread:
            self._any.clear()
            await self._any.wait()
        return self._unread.pop(next(iter(self._unread)))
