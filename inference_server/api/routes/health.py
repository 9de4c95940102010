"""Liveness, readiness, start-up and version. None of them waits for anything."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_server import __version__
from inference_server.api.context import context_of


async def live(request: Request) -> Response:
    """200 whenever the event loop answers."""
    return _json({"status": "ok"})


async def ready(request: Request) -> Response:
    """200 once every preloaded model has been in memory, until the server is told to stop."""
    context = context_of(request)
    is_ready = context.manager.is_ready and not context.door.is_leaving
    return _json({"status": "ok" if is_ready else "not ready"}, 200 if is_ready else 503)


async def startup(request: Request) -> Response:
    """As `ready`, and how far the preloads have come."""
    context = context_of(request)
    is_ready = context.manager.is_ready and not context.door.is_leaving
    loading = [
        {
            "model": status.name,
            "phase": status.progress[0] if status.progress else str(status.state),
            "fraction": status.progress[1] if status.progress else None,
            "bytes": status.memory_bytes,
        }
        for status in context.manager.snapshot()
        if status.spec.preload
    ]
    body = {
        "status": "ok" if is_ready else "starting",
        "seconds": round(time.time() - context.created, 1),
        "models": loading,
    }
    return _json(body, 200 if is_ready else 503)


async def version(request: Request) -> Response:
    """This server's version."""
    return _json({"version": __version__})


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
