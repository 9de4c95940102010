"""`POST /models/profile`: a few seconds of a running model as a file, for Perfetto or speedscope."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from inference_server.api.body import read_json
from inference_server.api.context import context_of, visible_model
from inference_server.api.disconnect import CancelOnDisconnect
from inference_server.api.schemas.lifecycle import ProfileRequest
from inference_server.profiling.capture import Profiler

_PROFILE = msgspec.json.Decoder(ProfileRequest)


async def profile_model(request: Request) -> ASGIApp:
    """See the module's docstring."""
    context = context_of(request)
    body = await read_json(request, _PROFILE, context.settings.max_body_bytes)
    name = visible_model(request, body.model).name
    return _ProfileFile(context.profiler, msgspec.structs.replace(body, model=name))


@dataclass(frozen=True, slots=True)
class _ProfileFile:
    """An ASGI response: captures, sends, and deletes the file, also when the client leaves."""

    profiler: Profiler
    wanted: ProfileRequest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            async with CancelOnDisconnect(receive):
                captured = self.profiler.captured(self.wanted.model, self.wanted.kind, self.wanted.seconds)
                profile = await stack.enter_async_context(captured)
            response = FileResponse(profile.path, filename=profile.name, media_type=profile.media_type)
            await response(scope, receive, send)
