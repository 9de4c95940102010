"""`GET /models/sse`: what happens to the models, as llama.cpp's router tells it.

Each event is `{"model", "event", "data"}`: at first `model_status` for every model (and later for a new one),
then `status_change`, `status_update` (the same state) or `model_remove`. `data` is a model of `GET /models`.
A slow reader misses intermediate progress, never a state; nothing is kept for one but the newest of each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from inference_server.api.context import context_of, visible_models
from inference_server.api.middleware.access import may_see
from inference_server.api.routes.admin import lifecycle_object
from inference_server.api.schemas.answers import event
from inference_server.api.sse import EventStream, EventWriter
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import ModelStatus


async def model_events(request: Request) -> ASGIApp:
    """See the module's docstring. Ends when the server drains."""
    return EventStream(lambda writer: _Events(request, writer).run())


class _Events:
    """One reader, who is told of the models that it may see. Remembers the state of each."""

    def __init__(self, request: Request, writer: EventWriter) -> None:
        self._request = request
        self._context = context_of(request)
        self._writer = writer
        self._told: dict[str, ModelState] = {}

    async def run(self) -> None:
        """Tell what happens until the server drains."""
        with self._context.manager.watch() as statuses:
            for status in visible_models(self._request):
                await self._tell(status, "model_status")
            async with aclosing(_until(self._context.door.draining, statuses)) as news:
                async for status in news:
                    if may_see(self._request.scope, status.name):
                        await self._follow(status)

    async def _follow(self, status: ModelStatus) -> None:
        """Tell one change. A model that is not in the table any more has been removed since."""
        if all(there.name != status.name for there in self._context.manager.snapshot()):
            if self._told.pop(status.name, None) is not None:
                await self._write(status.name, "model_remove", {})
        elif status.name not in self._told:
            await self._tell(status, "model_status")
        else:
            same = self._told[status.name] is status.state
            await self._tell(status, "status_update" if same else "status_change")

    async def _tell(self, status: ModelStatus, kind: str) -> None:
        self._told[status.name] = status.state
        await self._write(status.name, kind, lifecycle_object(self._context, status))

    async def _write(self, name: str, kind: str, data: object) -> None:
        body = msgspec.json.encode({"model": name, "event": kind, "data": data})
        await self._writer.write(event(body))


async def _until(
    end: asyncio.Event, statuses: AsyncIterator[ModelStatus]
) -> AsyncGenerator[ModelStatus, None]:
    """The statuses as they come, until `end` is set."""
    ending = asyncio.ensure_future(end.wait())
    following = asyncio.ensure_future(anext(statuses))
    try:
        while not end.is_set():
            done, _ = await asyncio.wait({ending, following}, return_when=asyncio.FIRST_COMPLETED)
            if following in done:
                yield following.result()
                following = asyncio.ensure_future(anext(statuses))
    finally:
        ending.cancel()
        following.cancel()
