"""Who may ask, and from where. Default deny: with a key set, every route but the public list needs it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from inference_server.api.errors import error_response
from inference_server.api.middleware.path import route_path
from inference_server.errors import Forbidden, HelixFlowError, Unauthenticated

PUBLIC_PATHS = frozenset(
    {
        "/health",
        "/health/live",
        "/health/ready",
        "/health/startup",
        "/livez",
        "/readyz",
        "/metrics",
        "/metrics/epp",
    }
)


class AccessMiddleware:
    """Checks Host (on loopback), Origin and the API key, in this order."""

    def __init__(
        self, app: ASGIApp, *, api_keys: Sequence[str], bound_host: str, root_path: str = ""
    ) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in api_keys]
        self._is_loopback = is_loopback(bound_host.strip("[]"))
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(route_path(scope["path"], self._root_path), Headers(scope=scope))
        except HelixFlowError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if self._is_loopback and not (len(hosts) == 1 and is_loopback(_host_name(hosts[0]))):
            raise Forbidden("this server listens on loopback and answers only to that name (Host header)")
        for origin in headers.getlist("origin"):
            if hosts and origin in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                continue
            raise Forbidden("requests from pages of another origin are refused")
        if self._digests and path not in PUBLIC_PATHS:
            self._check_key(headers)

    def _check_key(self, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(offered.encode("latin-1"))  # as its bytes were
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all, in constant time
        if not offered or not any(matches):
            raise Unauthenticated("a valid API key is needed: send 'Authorization: Bearer <key>'")


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(host: str) -> str:
    """The Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
