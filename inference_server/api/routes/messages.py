"""`POST /v1/messages` and `/v1/messages/count_tokens`, for Anthropic's clients."""

from __future__ import annotations

from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from inference_server.api.body import read_json
from inference_server.api.context import (
    context_of,
    frame_of,
    keep_alive_of,
    new_id,
    timeout_of,
    visible_model,
)
from inference_server.api.disconnect import CancelOnDisconnect
from inference_server.api.middleware.access import caller_of
from inference_server.api.middleware.observation import timeline_of
from inference_server.api.schemas.anthropic import CountTokensRequest, MessagesRequest
from inference_server.api.schemas.anthropic_answers import (
    MessageEvents,
    error_event,
    message_answer,
)
from inference_server.api.sse import EventStream, EventWriter
from inference_server.generation.choices import whole_choices
from inference_server.generation.parsing.plain import PlainParser
from inference_server.generation.requests import TextRequest
from inference_server.generation.service import GenerationService

_MESSAGES = msgspec.json.Decoder(MessagesRequest)
_COUNT = msgspec.json.Decoder(CountTokensRequest)


async def messages(request: Request) -> Response | ASGIApp:
    """A message, in one piece or as a stream."""
    context = context_of(request)
    body = await read_json(request, _MESSAGES, context.settings.max_body_bytes)
    wanted = msgspec.structs.replace(
        body.text_request(new_id("msg").replace("-", "_")),
        timeout_s=timeout_of(request, body.timeout),
        keep_alive_s=keep_alive_of(request, body.keep_alive, body.model),
        caller=caller_of(request.scope),
        timeline=timeline_of(request.scope),
    )
    if body.stream:
        return EventStream(lambda writer: _stream(context.service, wanted, writer), error_event=error_event)
    async with CancelOnDisconnect(request.receive):
        return await _whole(context.service, wanted)


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of such a message has; the model is not loaded for it."""
    context = context_of(request)
    body = await read_json(request, _COUNT, context.settings.max_body_bytes)
    prompt, timeout_s = body.prompt(), timeout_of(request, None)
    name = visible_model(request, body.model).name
    with context.turnstile.admitted(name, caller_of(request.scope)):
        async with CancelOnDisconnect(request.receive):
            tokens = await context.tokenization.encode(name, prompt, timeout_s, with_spellings=False)
    answer = msgspec.json.encode({"input_tokens": len(tokens.token_ids)})
    return Response(answer, media_type="application/json")


async def _whole(service: GenerationService, wanted: TextRequest) -> Response:
    async with service.open(wanted) as generation:
        (choice,) = await whole_choices(generation)
    parser = generation.new_parser() or PlainParser()
    answer = message_answer(frame_of(wanted, generation), choice, generation.usage, parser)
    return Response(answer, media_type="application/json")


async def _stream(service: GenerationService, wanted: TextRequest, writer: EventWriter) -> None:
    async with service.open(wanted, writer.loading) as generation:
        parser = generation.new_parser() or PlainParser()
        events = MessageEvents(frame_of(wanted, generation), parser)
        await writer.write(events.first(generation.usage))
        async with aclosing(generation.deltas()) as deltas:
            async for delta in deltas:
                await writer.write(events.delta(delta, generation.usage))
