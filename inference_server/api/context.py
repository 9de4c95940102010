"""What routes need, built once by the composition root. Read from `request.app.state.context`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from inference_server.api.keep_alive import lent_keep_alive, parse_keep_alive
from inference_server.api.middleware.access import caller_of, may_administer, may_see
from inference_server.api.schemas.answers import Frame
from inference_server.api.turnstile import Turnstile
from inference_server.config.settings import Settings
from inference_server.errors import InvalidRequest
from inference_server.generation.door import Door
from inference_server.generation.embeddings import EmbeddingService
from inference_server.generation.requests import TextRequest
from inference_server.generation.service import Generation, GenerationService
from inference_server.generation.tokenization import Tokenization
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.reload import ReloadReport
from inference_server.model_manager.status import ModelStatus
from inference_server.profiling.capture import Profiler
from inference_server.telemetry.endpoint_picker import EndpointPickerPage
from inference_server.telemetry.metrics import Metrics

MAX_TIMEOUT_S = 86400.0
Reload = Callable[[], Awaitable[ReloadReport]]


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The objects behind the API. `created` is the server's start, in seconds since the epoch.

    `reload` reads the configuration again; it raises ConfigError if that is wrong.
    """

    settings: Settings
    manager: ModelManager
    door: Door
    service: GenerationService
    embeddings: EmbeddingService
    tokenization: Tokenization
    turnstile: Turnstile
    metrics: Metrics
    reload: Reload
    picker_page: EndpointPickerPage
    profiler: Profiler
    created: int


def context_of(request: Request) -> ApiContext:
    """The context of the application that serves `request`."""
    context = request.app.state.context
    if not isinstance(context, ApiContext):
        raise TypeError("the application has no context")
    return context


def visible_model(request: Request, model: str) -> ModelStatus:
    """A model by name or alias. Raises UnknownModel: there is none that this caller may see."""
    return context_of(request).door.status(model, caller_of(request.scope))


def visible_models(request: Request) -> list[ModelStatus]:
    """All models that this caller may see."""
    return [s for s in context_of(request).manager.snapshot() if may_see(request.scope, s.name)]


def new_id(prefix: str) -> str:
    """A fresh id, e.g. `chatcmpl-…`."""
    return f"{prefix}-{secrets.token_hex(12)}"


def frame_of(wanted: TextRequest, generation: Generation) -> Frame:
    """What the answer to a request says about itself; the model by the name that the client used."""
    return Frame(wanted.request_id, wanted.model, int(time.time()), generation.fingerprint)


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


def keep_alive_of(request: Request, field: float | str | None, model: str) -> float | None:
    """How long the model is to stay after the request: seconds, below 0 for ever, None as its entry says.

    Raises:
        InvalidRequest: `field` is no duration.
        UnknownModel: no such model that the caller may ask.
    """
    wanted_s = parse_keep_alive(field)
    if wanted_s is None or may_administer(request.scope):
        return wanted_s
    return lent_keep_alive(wanted_s, visible_model(request, model).spec.keep_alive_s)
