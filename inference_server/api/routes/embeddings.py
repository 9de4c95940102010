"""`POST /v1/embeddings`."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.body import read_json
from inference_server.api.context import context_of, keep_alive_of, new_id, timeout_of
from inference_server.api.disconnect import CancelOnDisconnect
from inference_server.api.middleware.access import caller_of
from inference_server.api.middleware.observation import timeline_of
from inference_server.api.schemas.embeddings import EmbeddingsRequest, embeddings_answer

_DECODER = msgspec.json.Decoder(EmbeddingsRequest)


async def embeddings(request: Request) -> Response:
    """See the module's docstring."""
    context = context_of(request)
    body = await read_json(request, _DECODER, context.settings.max_body_bytes)
    job = msgspec.structs.replace(
        body.job(new_id("embd")),
        timeout_s=timeout_of(request, body.timeout),
        keep_alive_s=keep_alive_of(request, body.keep_alive, body.model),
        caller=caller_of(request.scope),
        timeline=timeline_of(request.scope),
    )
    async with CancelOnDisconnect(request.receive):
        answer = await context.embeddings.embed(job)
    return Response(
        await embeddings_answer(body.model, answer, body.encoding_format), media_type="application/json"
    )
