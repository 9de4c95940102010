"""`GET /v1/models`, `GET /v1/models/{id}`: every configured model and alias, and where it stands."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.context import ApiContext, context_of, visible_model, visible_models
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import ModelStatus

CACHE_CONTROL = "private, max-age=1"
_WORDS = {
    ModelState.UNLOADED: "unloaded",
    ModelState.FETCHING: "loading",
    ModelState.LOADING: "loading",
    ModelState.READY: "loaded",
    ModelState.SLEEPING: "sleeping",
    ModelState.DRAINING: "draining",
    ModelState.FAILED: "failed",
}


async def list_models(request: Request) -> Response:
    """All of them, aliases after their model."""
    context = context_of(request)
    data = [
        model_object(context, status, name)
        for status in visible_models(request)
        for name in (status.name, *status.spec.aliases)
    ]
    return _cacheable(request, {"object": "list", "data": data})


async def get_model(request: Request) -> Response:
    """One of them, by name or alias (which may hold slashes)."""
    context = context_of(request)
    name = request.path_params["name"]
    status = visible_model(request, name)
    return _cacheable(request, model_object(context, status, name))


def model_object(context: ApiContext, status: ModelStatus, name: str) -> dict[str, Any]:
    """OpenAI's fields, and what a many-model server adds. An alias's parent is its model."""
    plan, spec = status.plan, status.spec
    return {
        "id": name,
        "object": "model",
        "created": context.created,
        "owned_by": "helixflow",
        "root": status.name,
        "parent": None if name == status.name else status.name,
        "max_model_len": plan.max_model_len if plan is not None else spec.max_model_len,
        "task": plan.load.task if plan is not None else spec.task,
        "status": _WORDS[status.state],
        "quantization": plan.load.quantization if plan is not None else spec.quantization,
        "device": _device(status),
        "memory_bytes": status.memory_bytes,
    }


def _device(status: ModelStatus) -> str | None:
    """Where it is, or is going to be; None while it holds no memory."""
    if status.device is None and status.plan is not None and status.bytes_by_device:
        return status.plan.device
    return status.device


def _cacheable(request: Request, value: object) -> Response:
    body = msgspec.json.encode(value)
    etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"etag": etag, "cache-control": CACHE_CONTROL}
    offered = request.headers.get("if-none-match", "").split(",")
    known = [tag.strip().removeprefix("W/") for tag in offered]  # compressed answers have weak ones
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
