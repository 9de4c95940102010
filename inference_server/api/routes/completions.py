"""`POST /v1/completions`, in one piece and as a stream; one choice per prompt."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from inference_server.api.body import read_json
from inference_server.api.context import ApiContext, context_of, new_id, timeout_of
from inference_server.api.disconnect import until_disconnected
from inference_server.api.schemas.chat import usage_object
from inference_server.api.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from inference_server.api.sse import DONE, EventStream, event
from inference_server.api.status import loading_status
from inference_server.config.catalog import ModelSpec
from inference_server.generation.merging import merged
from inference_server.generation.requests import TextDelta, TextRequest
from inference_server.types import Usage

_DECODER = msgspec.json.Decoder(CompletionRequest)
_encode = msgspec.json.encode


async def completions(request: Request) -> Response | ASGIApp:
    """See the module's docstring."""
    context = context_of(request)
    body = await read_json(request, _DECODER, context.settings.max_body_bytes)
    body.check()
    spec = context.resolve(body.model)
    completion_id = new_id("cmpl")
    default = spec.defaults.max_tokens or DEFAULT_MAX_TOKENS
    sampling = body.sampling_options(body.max_tokens or default)
    wanted = [
        TextRequest(
            request_id=f"{completion_id}-{index}",
            model=spec.name,
            prompt=prompt,
            sampling=sampling,
            stop=body.stop_strings(),
            cache_salt=body.cache_salt or "",
            priority=body.priority or 0,
            timeout_s=timeout_of(request, body.timeout),
        )
        for index, prompt in enumerate(body.prompts())
    ]
    frame: dict[str, Any] = {
        "id": completion_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": context.system_fingerprint,
    }
    if body.stream:
        wanted = [await context.service.checked(one, spec) for one in wanted]
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(context, wanted, spec, frame, include_usage)
        return EventStream(events, lambda: loading_status(context.manager, spec.name))
    return await until_disconnected(request, _whole(context, wanted, spec, frame))


async def _whole(
    context: ApiContext, wanted: list[TextRequest], spec: ModelSpec, frame: dict[str, Any]
) -> Response:
    texts = [""] * len(wanted)
    ends: dict[int, TextDelta] = {}
    async with aclosing(merged([context.service.stream(one, spec) for one in wanted])) as deltas:
        async for index, delta in deltas:
            texts[index] += delta.text
            if delta.finish_reason is not None:
                ends[index] = delta
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": ends[index].finish_reason}
        for index, text in enumerate(texts)
    ]
    usage = _sum(end.usage for end in ends.values())
    return Response(_encode(frame | {"choices": choices, "usage": usage}), media_type="application/json")


async def _events(
    context: ApiContext,
    wanted: list[TextRequest],
    spec: ModelSpec,
    frame: dict[str, Any],
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    usages: list[Usage | None] = []
    streams = [context.service.stream(one, spec) for one in wanted]
    async with aclosing(merged(streams)) as deltas:
        async for index, delta in deltas:
            choice = {
                "index": index,
                "text": delta.text,
                "logprobs": None,
                "finish_reason": delta.finish_reason,
            }
            if delta.finish_reason is not None:
                usages.append(delta.usage)
            yield event(_encode(frame | {"choices": [choice]} | ({"usage": None} if include_usage else {})))
    if include_usage:
        yield event(_encode(frame | {"choices": [], "usage": _sum(usages)}))
    yield DONE


def _sum(usages: Iterable[Usage | None]) -> dict[str, Any]:
    known = [usage for usage in usages if usage is not None]
    return usage_object(
        Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in known),
            completion_tokens=sum(usage.completion_tokens for usage in known),
            cached_tokens=sum(usage.cached_tokens for usage in known),
        )
    )
