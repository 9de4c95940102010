"""`/models`, `/models/load|unload|sleep|wake|plan|reload`: the lifecycle, in llama.cpp's shapes.

A client that leaves aborts nothing: what it asked for belongs to the server.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.body import read_json
from inference_server.api.context import ApiContext, context_of, visible_model, visible_models
from inference_server.api.keep_alive import parse_keep_alive
from inference_server.api.middleware.access import may_see
from inference_server.api.routes.models import model_object
from inference_server.api.schemas.lifecycle import (
    LoadRequest,
    ModelName,
    Nothing,
    forecast_object,
    lifecycle_fields,
    memory_objects,
)
from inference_server.errors import ConfigError, InvalidRequest
from inference_server.model_manager.status import ModelStatus

_MODEL = msgspec.json.Decoder(ModelName)
_LOAD = msgspec.json.Decoder(LoadRequest)
_NOTHING = msgspec.json.Decoder(Nothing)
_SUCCESS = {"success": True}


def lifecycle_object(context: ApiContext, status: ModelStatus) -> dict[str, Any]:
    """A model of `/v1/models`, and its life."""
    in_house = context.door.num_in_progress(status.name)
    return model_object(context, status, status.name) | lifecycle_fields(status, in_house)


async def list_lifecycle(request: Request) -> Response:
    """Every model with its state, requests and progress, and the memory that they share."""
    context = context_of(request)
    data = [lifecycle_object(context, status) for status in visible_models(request)]
    memory = memory_objects(context.manager.device_usage())
    return _json({"object": "list", "data": data, "memory": memory})


async def load_model(request: Request) -> Response:
    """Load a model and answer when it is ready. What a failed load has put off is tried at once."""
    context = context_of(request)
    body = await read_json(request, _LOAD, context.settings.max_body_bytes)
    keep_alive_s = parse_keep_alive(body.keep_alive)
    name = visible_model(request, body.model).name
    context.door.check_open()
    async with context.manager.acquire(name, keep_alive_s=keep_alive_s, retries=True):
        pass
    return _json(_SUCCESS)


async def unload_model(request: Request) -> Response:
    """Unload a model and answer when its memory is free; requests that run on it finish first."""
    context, name = await _named(request)
    await context.manager.unload(name)
    return _json(_SUCCESS)


async def sleep_model(request: Request) -> Response:
    """Give a model's memory back and keep its process; requests that run on it finish first."""
    context, name = await _named(request)
    await context.manager.sleep(name)
    return _json(_SUCCESS)


async def wake_model(request: Request) -> Response:
    """Make a model ready for requests and answer when it is."""
    context, name = await _named(request)
    context.door.check_open()
    await context.manager.wake(name)
    return _json(_SUCCESS)


async def plan_model(request: Request) -> Response:
    """What a request for a model would meet now. Fetches, loads and evicts nothing."""
    context, name = await _named(request)
    forecast = await context.manager.forecast(name)
    victims = tuple([victim for victim in forecast.victims if may_see(request.scope, victim.name)])
    forecast = dataclasses.replace(forecast, victims=victims)
    return _json(forecast_object(name, forecast, context.manager.device_usage()))


async def reload_models(request: Request) -> Response:
    """Read the configuration again; if it is wrong, say why, and everything stays as it was."""
    context = context_of(request)
    if request.headers.get("content-type"):  # curl -X POST sends no body and no type
        await read_json(request, _NOTHING, context.settings.max_body_bytes)
    try:
        report = await context.reload()
    except ConfigError as error:
        raise InvalidRequest(f"the configuration stays as it was: {error.message}") from error
    found = {"added": report.added, "removed": report.removed, "changed": report.changed}
    changes = {what: [n for n in names if may_see(request.scope, n)] for what, names in found.items()}
    return _json(_SUCCESS | changes)


async def _named(request: Request) -> tuple[ApiContext, str]:
    context = context_of(request)
    body = await read_json(request, _MODEL, context.settings.max_body_bytes)
    return context, visible_model(request, body.model).name


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
