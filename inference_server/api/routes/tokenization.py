"""`POST /tokenize` and `/detokenize`: a model's tokenizer for clients; the model is not loaded for it."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.body import read_json
from inference_server.api.context import context_of, timeout_of, visible_model
from inference_server.api.disconnect import CancelOnDisconnect
from inference_server.api.middleware.access import caller_of
from inference_server.api.schemas.tokenize import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenized,
    tokenized,
)

_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: Request) -> Response:
    """Text or a conversation → token ids."""
    context = context_of(request)
    body = await read_json(request, _TOKENIZE, context.settings.max_body_bytes)
    prompt, with_strings = body.wanted(), bool(body.return_token_strs)
    timeout_s = timeout_of(request, body.timeout)
    name = visible_model(request, body.model).name
    with context.turnstile.admitted(name, caller_of(request.scope)):
        async with CancelOnDisconnect(request.receive):
            tokens = await context.tokenization.encode(name, prompt, timeout_s, with_spellings=with_strings)
    return Response(tokenized(tokens, with_strings=with_strings), media_type="application/json")


async def detokenize(request: Request) -> Response:
    """Token ids → text."""
    context = context_of(request)
    body = await read_json(request, _DETOKENIZE, context.settings.max_body_bytes)
    timeout_s = timeout_of(request, body.timeout)
    name = visible_model(request, body.model).name
    with context.turnstile.admitted(name, caller_of(request.scope)):
        async with CancelOnDisconnect(request.receive):
            text = await context.tokenization.decode(name, tuple(body.tokens), timeout_s)
    return Response(detokenized(text), media_type="application/json")
