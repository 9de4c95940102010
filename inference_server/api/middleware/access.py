"""Who may ask what, and from where. Default deny: with a key set, every route but the public list needs it,
and every route but those for inference needs one that may administer.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

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


INFERENCE_PATHS = frozenset({"/version", "/openapi.json", "/api/ps", "/tokenize", "/detokenize"})
INFERENCE_PREFIXES = ("/v1/", "/api/v1/")
_IS_ADMIN = "helixflow.is_admin"  # in the ASGI scope


def may_administer(scope: Scope) -> bool:
    """Whether the caller of a request that was let through may decide what is in memory."""
    return bool(scope.get(_IS_ADMIN, False))


class AccessMiddleware:
    """Checks Host (on loopback), Origin and the API key, in this order.

    Without any key everybody who gets this far may do everything.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        inference_api_key: str | None = None,
        bound_host: str,
        root_path: str = "",
    ) -> None:
        self._app = app
        self._admin = _digest(api_key.encode()) if api_key else None
        self._inference = _digest(inference_api_key.encode()) if inference_api_key else None
        self._is_loopback = is_loopback(bound_host.strip("[]"))
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            path = route_path(scope["path"], self._root_path)
            scope[_IS_ADMIN] = self._check(path, Headers(scope=scope))
        except HelixFlowError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> bool:
        """Let the request through, and say whether its caller may administer."""
        hosts = headers.getlist("host")
        if self._is_loopback and not (len(hosts) == 1 and is_loopback(_host_name(hosts[0]))):
            raise Forbidden("this server listens on loopback and answers only to that name (Host header)")
        for origin in headers.getlist("origin"):
            if hosts and origin in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                continue
            raise Forbidden("requests from pages of another origin are refused")
        if self._admin is None:
            return True
        return path not in PUBLIC_PATHS and self._check_key(path, headers)

    def _check_key(self, path: str, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(offered.encode("latin-1"))  # as its bytes were
        is_admin, is_inference = _equal(digest, self._admin), _equal(digest, self._inference)
        if not (is_admin or is_inference):
            raise Unauthenticated("a valid API key is needed: send 'Authorization: Bearer <key>'")
        if not is_admin and not (path in INFERENCE_PATHS or path.startswith(INFERENCE_PREFIXES)):
            raise Forbidden("this key is for inference only; this route needs the server's main API key")
        return is_admin


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


def _equal(digest: bytes, known: bytes | None) -> bool:
    """In constant time."""
    return known is not None and hmac.compare_digest(digest, known)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
