"""`POST /v1/chat/completions`, in one piece and as a stream."""

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
from inference_server.api.schemas.answers import ChatChunks, chat_completion
from inference_server.api.schemas.chat import ChatRequest
from inference_server.api.sse import DONE, EventStream, EventWriter
from inference_server.generation.choices import whole_choices
from inference_server.generation.requests import TextRequest
from inference_server.generation.service import GenerationService

_DECODER = msgspec.json.Decoder(ChatRequest)


async def chat_completions(request: Request) -> Response | ASGIApp:
    """See the module's docstring."""
    context = context_of(request)
    body = await read_json(request, _DECODER, context.settings.max_body_bytes)
    body.check()
    wanted = msgspec.structs.replace(
        body.text_request(new_id("chatcmpl"), (body.prompt(),)),
        timeout_s=timeout_of(request, body.timeout),
        keep_alive_s=keep_alive_of(request, body.keep_alive, body.model),
        caller=caller_of(request.scope),
        timeline=timeline_of(request.scope),
        tool_use=body.tool_use(),
    )
    if body.stream:
        include_usage = body.includes_usage
        return EventStream(lambda writer: _stream(context.service, wanted, include_usage, writer))
    async with CancelOnDisconnect(request.receive):
        return await _whole(context.service, wanted)


async def _whole(service: GenerationService, wanted: TextRequest) -> Response:
    async with service.open(wanted) as generation:
        choices = await whole_choices(generation)
    frame = frame_of(wanted, generation)
    answer = await chat_completion(frame, wanted, choices, generation.usage, generation.new_parser)
    return Response(answer, media_type="application/json")


async def _stream(
    service: GenerationService, wanted: TextRequest, include_usage: bool, writer: EventWriter
) -> None:
    async with service.open(wanted, writer.loading) as generation:
        chunks = ChatChunks(
            frame_of(wanted, generation),
            wanted,
            include_usage=include_usage,
            parsers=[generation.new_parser() for _ in range(wanted.num_answers)],
        )
        await writer.write(chunks.first())
        num_open = wanted.num_answers
        async with aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                events = chunks.delta(delta)
                num_open -= delta.finish_reason is not None
                if not num_open:
                    events += chunks.usage(generation.usage) + DONE
                await writer.write(events)
