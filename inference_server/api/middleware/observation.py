"""Request ids, durations, traces, log lines, and the number of requests in progress. The outermost layer. It
also answers exceptions that nobody has foreseen, so that they are counted as what they are.

While the server is leaving, every answer also asks for its connection to be closed: whoever pools connections
then holds none that the end of the server could cut under a request.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference_server.api.errors import error_response, internal_error_response
from inference_server.api.middleware.access import caller_of
from inference_server.api.middleware.path import route_path
from inference_server.errors import ShuttingDown
from inference_server.telemetry.metrics import Metrics
from inference_server.tracing.account import RequestAccount, headline, log_fields
from inference_server.tracing.context import context_from
from inference_server.tracing.timeline import Timeline
from inference_server.tracing.tracer import RequestTrace, Tracer, Untraced

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNSENT = 499  # the status while nothing is sent, and of a client that left before anything was
_REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_TIMELINE = "helixflow.timeline"  # in the ASGI scope
QUIET_PREFIXES = (
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
)  # lines of these would hide the rest
logger = logging.getLogger("inference_server.access")


def timeline_of(scope: Scope) -> Timeline | None:
    """Where what becomes of a request is written down."""
    found = scope.get(_TIMELINE)
    return found if isinstance(found, Timeline) else None


class ObservationMiddleware:
    """`paths` are the exact routes that may be label values; everything else is "other".

    `clock` gives monotonic seconds and must be that of whoever writes the timelines.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        tracer: Tracer,
        paths: Collection[str],
        is_leaving: Callable[[], bool],
        root_path: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._is_leaving = is_leaving
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._paths = frozenset(paths)
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = self._clock()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        parent = context_from(headers.getlist("traceparent"), headers.getlist("tracestate"))
        endpoint = self._label(scope["path"])
        is_quiet = endpoint.startswith(QUIET_PREFIXES)
        trace = Untraced(parent) if is_quiet else self._tracer.begin(parent, start_s)
        timeline = scope[_TIMELINE] = Timeline()
        told = _told(request_id, trace, endpoint)
        status = UNSENT

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *told]
                if self._is_leaving():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self._metrics.connections.inc()
        try:
            await self._app(scope, receive, observed)
        except Exception:
            if status != UNSENT:
                raise  # in the middle of an answer: uvicorn logs it and closes the connection
            logger.exception("request %s has failed", request_id)
            await internal_error_response(scope)(scope, receive, observed)
        except asyncio.CancelledError:
            if status == UNSENT and self._is_leaving():  # the server waits no longer
                ended = ShuttingDown("the server stopped before the request had ended")
                await error_response(ended, scope)(scope, receive, observed)
            raise
        finally:
            self._metrics.connections.dec()
            caller = caller_of(scope)
            account = RequestAccount(
                request_id=request_id,
                method=scope["method"] if scope["method"] in METHODS else "other",
                endpoint=endpoint,
                status=status,
                start_s=start_s,
                end_s=self._clock(),
                key="" if caller is None else caller.key.name,
                trace=trace.context,
                timeline=timeline,
            )
            trace.end(account)
            self._tell(account, logging.DEBUG if is_quiet else logging.INFO)

    def _tell(self, account: RequestAccount, level: int) -> None:
        """Metrics and log."""
        seconds = account.end_s - account.start_s
        labels = (account.method, account.endpoint, str(account.status))
        self._metrics.http_duration.labels(*labels).observe(seconds)
        if logger.isEnabledFor(level):
            logger.log(level, "%s", headline(account), extra={"fields": log_fields(account)})

    def _label(self, path: str) -> str:
        path = route_path(path, self._root_path)
        if path in self._paths:
            return path.removeprefix("/api")
        path = path.removeprefix("/api")
        return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"


def _told(request_id: str, trace: RequestTrace, endpoint: str) -> list[tuple[bytes, bytes]]:
    """Headers by which the client finds this request in our logs and traces."""
    headers = [(b"x-request-id", request_id.encode())]
    if endpoint.startswith("/v1/messages"):
        headers.append((b"request-id", request_id.encode()))  # where Anthropic's clients look
    if trace.is_ours and trace.context is not None:
        headers.append((b"traceparent", trace.context.traceparent.encode()))
    return headers


def _request_id(headers: Headers) -> str:
    """The client's `x-request-id` if it is one that may be echoed, else a fresh one."""
    offered = headers.get("x-request-id", "")
    return offered if _REQUEST_ID.fullmatch(offered) else f"req-{secrets.token_hex(8)}"
