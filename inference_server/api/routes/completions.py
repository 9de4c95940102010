"""`POST /v1/completions`, in one piece and as a stream; one choice per prompt."""

from __future__ import annotations

from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from inference_server.api.body import read_json
from inference_server.api.context import context_of, frame_of, keep_alive_of, new_id, timeout_of
from inference_server.api.disconnect import CancelOnDisconnect
from inference_server.api.middleware.access import caller_of
from inference_server.api.middleware.observation import timeline_of
from inference_server.api.schemas.answers import CompletionChunks, text_completion
from inference_server.api.schemas.completions import CompletionRequest
from inference_server.api.sse import DONE, EventStream, EventWriter
from inference_server.generation.choices import whole_choices
from inference_server.generation.requests import TextRequest
from inference_server.generation.service import GenerationService

_DECODER = msgspec.json.Decoder(CompletionRequest)


async def completions(request: Request) -> Response | ASGIApp:
    """See the module's docstring."""
    context = context_of(request)
    body = await read_json(request, _DECODER, context.settings.max_body_bytes)
    body.check()
    wanted = msgspec.structs.replace(
        body.text_request(new_id("cmpl"), body.prompts()),
        timeout_s=timeout_of(request, body.timeout),
        keep_alive_s=keep_alive_of(request, body.keep_alive, body.model),
        caller=caller_of(request.scope),
        timeline=timeline_of(request.scope),
    )
    if body.stream:
        include_usage = body.includes_usage
        return EventStream(lambda writer: _stream(context.service, wanted, include_usage, writer))
    async with CancelOnDisconnect(request.receive):
        return await _whole(context.service, wanted)


async def _whole(service: GenerationService, wanted: TextRequest) -> Response:
    async with service.open(wanted) as generation:
        choices = await whole_choices(generation)
    answer = await text_completion(frame_of(wanted, generation), wanted, choices, generation.usage)
    return Response(answer, media_type="application/json")


async def _stream(
    service: GenerationService, wanted: TextRequest, include_usage: bool, writer: EventWriter
) -> None:
    async with service.open(wanted, writer.loading) as generation:
        chunks = CompletionChunks(frame_of(wanted, generation), wanted, include_usage=include_usage)
        writer.ready()
        async with aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                await writer.write(chunks.delta(delta))
        await writer.write(chunks.usage(generation.usage) + DONE)
