"""`/models`, `/models/load`, `/models/unload`: the lifecycle, in llama.cpp's shapes."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.body import read_json
from inference_server.api.context import context_of
from inference_server.api.routes.models import model_object


class ModelName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a lifecycle call."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]


_DECODER = msgspec.json.Decoder(ModelName)
_SUCCESS = b'{"success":true}'


async def list_lifecycle(request: Request) -> Response:
    """Every model with its state, leases and progress."""
    context = context_of(request)
    data = []
    for status in context.manager.snapshot():
        progress = status.progress
        data.append(
            model_object(context, status, status.name)
            | {
                "aliases": status.spec.aliases,
                "num_leases": status.num_leases,
                "num_waiting": status.num_waiting,
                "progress": None if progress is None else {"stage": progress[0], "fraction": progress[1]},
                "failure": status.failure,
            }
        )
    return Response(msgspec.json.encode({"object": "list", "data": data}), media_type="application/json")


async def load_model(request: Request) -> Response:
    """Load a model and answer when it is ready. A client that leaves does not abort the load."""
    context = context_of(request)
    name = (await read_json(request, _DECODER, context.settings.max_body_bytes)).model
    await context.manager.load(context.resolve(name))
    return Response(_SUCCESS, media_type="application/json")


async def unload_model(request: Request) -> Response:
    """Unload a model and answer when its memory is free; requests that run on it finish first."""
    context = context_of(request)
    name = (await read_json(request, _DECODER, context.settings.max_body_bytes)).model
    await context.manager.unload(context.resolve(name))
    return Response(_SUCCESS, media_type="application/json")
