"""What routes need, built once by the composition root. Read from `request.app.state.context`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from starlette.requests import Request

from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import InvalidRequest
from inference_server.generation.service import GenerationService
from inference_server.model_manager.manager import ModelManager
from inference_server.telemetry.metrics import Metrics

MAX_TIMEOUT_S = 86400.0


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The objects behind the API. `created` is the server's start, in seconds since the epoch."""

    catalog: Catalog
    settings: Settings
    manager: ModelManager
    service: GenerationService
    metrics: Metrics
    created: int
    system_fingerprint: str

    def resolve(self, model: str) -> ModelSpec:
        """The model that a client means by a name or alias. Raises UnknownModel."""
        return self.catalog.resolve(model)


def context_of(request: Request) -> ApiContext:
    """The context of the application that serves `request`."""
    context = request.app.state.context
    if not isinstance(context, ApiContext):
        raise TypeError("the application has no context")
    return context


def new_id(prefix: str) -> str:
    """A fresh id, e.g. `chatcmpl-…`."""
    return f"{prefix}-{secrets.token_hex(12)}"


def timeout_of(request: Request, field: float | None) -> float | None:
    """The client's deadline in seconds: the body's `timeout`, or the `x-request-timeout` header.

    Raises:
        InvalidRequest: the header is not a positive number.
    """
    header = request.headers.get("x-request-timeout")
    if field is not None or header is None:
        return field
    try:
        seconds = float(header)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            "x-request-timeout must be a number of seconds above 0", param="x-request-timeout"
        )
    return seconds
