"""`POST /v1/chat/completions`, in one piece and as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from inference_server.api.body import read_json
from inference_server.api.context import ApiContext, context_of, new_id, timeout_of
from inference_server.api.disconnect import until_disconnected
from inference_server.api.schemas.chat import ChatRequest, usage_object
from inference_server.api.sse import DONE, EventStream, event
from inference_server.api.status import loading_status
from inference_server.config.catalog import ModelSpec
from inference_server.generation.requests import TextDelta, TextRequest

_DECODER = msgspec.json.Decoder(ChatRequest)
_encode = msgspec.json.encode


async def chat_completions(request: Request) -> Response | ASGIApp:
    """See the module's docstring."""
    context = context_of(request)
    body = await read_json(request, _DECODER, context.settings.max_body_bytes)
    body.check()
    spec = context.resolve(body.model)
    wanted = TextRequest(
        request_id=new_id("chatcmpl"),
        model=spec.name,
        prompt=body.prompt(),
        sampling=body.sampling_options(body.output_limit()),
        stop=body.stop_strings(),
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
        timeout_s=timeout_of(request, body.timeout),
    )
    if body.stream:
        wanted = await context.service.checked(wanted, spec)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(context, wanted, spec, body.model, include_usage)
        return EventStream(events, lambda: loading_status(context.manager, spec.name))
    return await until_disconnected(request, _whole(context, wanted, spec, body.model))


async def _whole(context: ApiContext, wanted: TextRequest, spec: ModelSpec, model: str) -> Response:
    text = ""
    last: TextDelta | None = None
    async with aclosing(context.service.stream(wanted, spec)) as deltas:
        async for last in deltas:
            text += last.text
    if last is None or last.usage is None or last.finish_reason is None:
        raise RuntimeError("the generation service ended without a finish reason")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": last.finish_reason.value,
    }
    answer = _frame(context, wanted, model, "chat.completion") | {
        "choices": [choice],
        "usage": usage_object(last.usage),
    }
    return Response(_encode(answer), media_type="application/json")


async def _events(
    context: ApiContext, wanted: TextRequest, spec: ModelSpec, model: str, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Chunks as OpenAI streams them. Everything that never changes is encoded once."""
    frame = _frame(context, wanted, model, "chat.completion.chunk")
    if include_usage:
        frame["usage"] = None

    def chunk(delta: dict[str, str], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(_encode(frame | {"choices": [choice]}))

    before, after = chunk({"content": "\x00"}, None).split(_encode("\x00"))
    yield chunk({"role": "assistant", "content": ""}, None)
    async with aclosing(context.service.stream(wanted, spec)) as deltas:
        async for delta in deltas:
            text = before + _encode(delta.text) + after if delta.text else b""
            if delta.finish_reason is None:
                yield text
                continue
            tail = text + chunk({}, delta.finish_reason.value)
            if include_usage and delta.usage is not None:
                tail += event(_encode(frame | {"choices": [], "usage": usage_object(delta.usage)}))
            yield tail + DONE


def _frame(context: ApiContext, wanted: TextRequest, model: str, kind: str) -> dict[str, Any]:
    return {
        "id": wanted.request_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": context.system_fingerprint,
    }
