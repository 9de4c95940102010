"""Request ids, durations and the number of requests in progress. The outermost layer.

While the server is leaving, every answer also asks for its connection to be closed: whoever pools connections
then holds none that the end of the server could cut under a request.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference_server.api.middleware.path import route_path
from inference_server.telemetry.metrics import Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
logger = logging.getLogger("inference_server.access")


class ObservationMiddleware:
    """`paths` are the exact routes that may be label values; everything else is "other"."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        paths: Collection[str],
        is_leaving: Callable[[], bool],
        root_path: str = "",
    ) -> None:
        self._app = app
        self._is_leaving = is_leaving
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = _request_id(Headers(scope=scope))
        status = 499  # nothing was sent: the client left first

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                if self._is_leaving():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self._metrics.connections.inc()
        try:
            await self._app(scope, receive, observed)
        finally:
            self._metrics.connections.dec()
            seconds = time.perf_counter() - started_s
            endpoint = self._label(scope["path"])
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.http_duration.labels(method, endpoint, str(status)).observe(seconds)
            logger.debug("%s %s %d %.1f ms %s", method, scope["path"], status, seconds * 1000, request_id)

    def _label(self, path: str) -> str:
        path = route_path(path, self._root_path)
        if path in self._paths:
            return path.removeprefix("/api")
        path = path.removeprefix("/api")
        return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"


def _request_id(headers: Headers) -> str:
    """The client's `x-request-id` if it is one that may be echoed, else a fresh one."""
    offered = headers.get("x-request-id", "")
    return offered if _REQUEST_ID.fullmatch(offered) else f"req-{secrets.token_hex(8)}"
