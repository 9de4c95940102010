"""`POST /v1/responses`, in one piece and as a stream; nothing is kept between requests."""

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
from inference_server.api.schemas.response_events import ResponseBuilder
from inference_server.api.schemas.responses import ResponsesRequest
from inference_server.api.sse import EventStream, EventWriter
from inference_server.errors import HelixFlowError
from inference_server.generation.parsing.plain import PlainParser
from inference_server.generation.requests import TextRequest
from inference_server.generation.service import Generation, GenerationService
from inference_server.types import FinishReason

_DECODER = msgspec.json.Decoder(ResponsesRequest)


async def responses(request: Request) -> Response | ASGIApp:
    """See the module's docstring."""
    context = context_of(request)
    body = await read_json(request, _DECODER, context.settings.max_body_bytes)
    body.check()
    wanted = msgspec.structs.replace(
        body.text_request(new_id("resp").replace("-", "_")),
        timeout_s=timeout_of(request, body.timeout),
        keep_alive_s=keep_alive_of(request, body.keep_alive, body.model),
        caller=caller_of(request.scope),
        timeline=timeline_of(request.scope),
    )
    if body.stream:
        stream = _Stream(context.service, wanted, body)
        return EventStream(stream.run, error_event=stream.error)
    async with CancelOnDisconnect(request.receive):
        return await _whole(context.service, wanted, body)


def _builder(wanted: TextRequest, body: ResponsesRequest, generation: Generation) -> ResponseBuilder:
    parser = generation.new_parser() or PlainParser()
    return ResponseBuilder(frame_of(wanted, generation), body, parser)


async def _whole(service: GenerationService, wanted: TextRequest, body: ResponsesRequest) -> Response:
    reason: FinishReason | None = None
    async with service.open(wanted) as generation, aclosing(generation.deltas()) as deltas:
        builder = _builder(wanted, body, generation)
        async for delta in deltas:
            builder.delta(delta, generation.usage)
            reason = delta.finish_reason
        whole = builder.whole(reason, generation.usage)
    return Response(msgspec.json.encode(whole), media_type="application/json")


class _Stream:
    """One streamed response; the error that may end it continues the numbering of its events."""

    def __init__(self, service: GenerationService, wanted: TextRequest, body: ResponsesRequest) -> None:
        self._service = service
        self._wanted = wanted
        self._body = body
        self._builder: ResponseBuilder | None = None

    async def run(self, writer: EventWriter) -> None:
        """Write the events."""
        async with self._service.open(self._wanted, writer.loading) as generation:
            builder = self._builder = _builder(self._wanted, self._body, generation)
            await writer.write(builder.first())
            async with aclosing(generation.deltas()) as deltas:
                async for delta in deltas:
                    await writer.write(builder.delta(delta, generation.usage))

    def error(self, error: HelixFlowError) -> bytes:
        """The event that tells of an error."""
        if self._builder is not None:
            return self._builder.error(error)
        payload = {"type": "error", "sequence_number": 0, "code": error.code, "message": error.message}
        return b"event: error\ndata: " + msgspec.json.encode(payload | {"param": error.param}) + b"\n\n"
