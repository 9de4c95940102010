"""Builds the ASGI application: routes, middleware, and the answer to every exception."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from inference_server.access.gate import Gate
from inference_server.api.context import ApiContext, Reload
from inference_server.api.disconnect import ClientDisconnected
from inference_server.api.errors import error_response, refusal
from inference_server.api.middleware.access import AccessMiddleware
from inference_server.api.middleware.compression import CompressionMiddleware
from inference_server.api.middleware.observation import ObservationMiddleware
from inference_server.api.replica_load import replica_load
from inference_server.api.routes import (
    admin,
    document,
    health,
    messages,
    metrics,
    model_events,
    models,
    ollama,
    profile,
    tokenization,
)
from inference_server.api.routes.chat import chat_completions
from inference_server.api.routes.completions import completions
from inference_server.api.routes.embeddings import embeddings
from inference_server.api.routes.responses import responses
from inference_server.api.turnstile import Turnstile
from inference_server.config.settings import Settings
from inference_server.errors import HelixFlowError
from inference_server.generation.services import Services
from inference_server.model_manager.manager import ModelManager
from inference_server.profiling.capture import Profiler, find_py_spy
from inference_server.telemetry.endpoint_picker import EndpointPickerPage, ReplicaLoad
from inference_server.telemetry.metrics import Metrics
from inference_server.tracing.tracer import Tracer

_ROUTING_ERRORS = {
    404: ("There is no such route", "not_found"),
    405: ("This route does not take this method", "method_not_allowed"),
}


def build_application(
    *,
    settings: Settings,
    manager: ModelManager,
    services: Services,
    metrics: Metrics,
    reload: Reload,
    gate: Gate,
    tracer: Tracer,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The whole HTTP surface over the given objects. `clock` gives monotonic seconds."""

    def measure() -> ReplicaLoad:
        return replica_load(manager.snapshot(), manager.device_usage(), services.door.num_requests)

    routes = _routes()
    paths = {route.path for route in routes}
    application = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                ObservationMiddleware,
                metrics=metrics,
                tracer=tracer,
                paths=paths,
                is_leaving=lambda: services.door.is_leaving,
                root_path=settings.root_path,
            ),
            Middleware(
                AccessMiddleware,
                gate=gate,
                bound_host=settings.host,
                root_path=settings.root_path,
            ),
            Middleware(CompressionMiddleware),
        ],
        exception_handlers={
            HelixFlowError: _known_error,
            HTTPException: _http_error,
            ClientDisconnected: _nobody_there,
            ClientDisconnect: _nobody_there,  # while its body was being read
        },
    )
    application.router.redirect_slashes = False
    application.state.context = ApiContext(
        settings=settings,
        manager=manager,
        door=services.door,
        service=services.text,
        embeddings=services.embeddings,
        tokenization=services.tokenization,
        turnstile=Turnstile(services.door, clock=clock),
        metrics=metrics,
        reload=reload,
        picker_page=EndpointPickerPage(measure, clock=clock, wall_clock=time.time),
        profiler=Profiler(manager, find_py_spy()),
        created=int(time.time()),
    )
    return application


def _routes() -> list[Route]:
    """The busiest first: the router tries them in order."""
    return [
        *_model_routes("/v1"),
        *_model_routes("/api/v1"),
        Route("/health/live", health.live),
        Route("/livez", health.live),
        Route("/health/ready", health.ready),
        Route("/readyz", health.ready),
        Route("/health", health.ready),
        Route("/health/startup", health.startup),
        Route("/metrics", metrics.page),
        Route("/metrics/epp", metrics.endpoint_picker_page),
        Route("/version", health.version),
        Route("/openapi.json", document.openapi),
        Route("/tokenize", tokenization.tokenize, methods=["POST"]),
        Route("/detokenize", tokenization.detokenize, methods=["POST"]),
        Route("/models", admin.list_lifecycle),
        Route("/models/sse", model_events.model_events),
        Route("/models/load", admin.load_model, methods=["POST"]),
        Route("/models/unload", admin.unload_model, methods=["POST"]),
        Route("/models/sleep", admin.sleep_model, methods=["POST"]),
        Route("/models/wake", admin.wake_model, methods=["POST"]),
        Route("/models/plan", admin.plan_model, methods=["POST"]),
        Route("/models/profile", profile.profile_model, methods=["POST"]),
        Route("/models/reload", admin.reload_models, methods=["POST"]),
        Route("/api/ps", ollama.running_models),
    ]


def _model_routes(prefix: str) -> list[Route]:
    return [
        Route(f"{prefix}/chat/completions", chat_completions, methods=["POST"]),
        Route(f"{prefix}/completions", completions, methods=["POST"]),
        Route(f"{prefix}/responses", responses, methods=["POST"]),
        Route(f"{prefix}/messages", messages.messages, methods=["POST"]),
        Route(f"{prefix}/messages/count_tokens", messages.count_tokens, methods=["POST"]),
        Route(f"{prefix}/embeddings", embeddings, methods=["POST"]),
        Route(f"{prefix}/models", models.list_models),
        Route(f"{prefix}/models/{{name:path}}", models.get_model),
    ]


async def _known_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HelixFlowError):
        raise error
    return error_response(error, request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    words, code = _ROUTING_ERRORS.get(error.status_code, (error.detail, "invalid_value"))
    message = f"{words}: {request.method} {request.scope['path'][:200]}"
    kind = "invalid_request_error"
    return refusal(request.scope, error.status_code, kind, message, code, headers=error.headers)


async def _nobody_there(request: Request, error: Exception) -> Response:
    """The client has left; whatever is sent goes nowhere."""
    return Response(status_code=499)
