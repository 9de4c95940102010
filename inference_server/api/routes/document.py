"""`GET /openapi.json`."""

from __future__ import annotations

import functools

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.openapi import openapi_document


async def openapi(request: Request) -> Response:
    """The document, made once."""
    return Response(_document(), media_type="application/json")


@functools.cache
def _document() -> bytes:
    return msgspec.json.encode(openapi_document())
