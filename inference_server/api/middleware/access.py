"""Who may ask what, and from where. Default deny: with a key set, every route but the public list needs it,
and every route but those for inference needs one that may administer.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference_server.access.gate import Caller, Gate
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


TOKENIZING_PATHS = frozenset({"/tokenize", "/detokenize"})
INFERENCE_PATHS = frozenset({"/version", "/openapi.json", "/api/ps"}) | TOKENIZING_PATHS
INFERENCE_PREFIXES = ("/v1/", "/api/v1/")
_ASKING = ("chat/completions", "completions", "responses", "messages", "messages/count_tokens", "embeddings")
COSTLY_PATHS = TOKENIZING_PATHS | {f"{prefix}{name}" for prefix in INFERENCE_PREFIXES for name in _ASKING}
_CALLER = "helixflow.caller"  # in the ASGI scope; absent where there are no keys


def caller_of(scope: Scope) -> Caller | None:
    """Whoever sent a request that was let through; None where there are no keys."""
    found = scope.get(_CALLER)
    return found if isinstance(found, Caller) else None


def may_administer(scope: Scope) -> bool:
    """Whether the caller of a request that was let through may decide what is in memory."""
    caller = caller_of(scope)
    return caller is None or caller.key.may_administer


def may_see(scope: Scope, model: str) -> bool:
    """Whether a model (its configured name) is there for the caller of a request that was let through."""
    caller = caller_of(scope)
    return caller is None or caller.key.may_ask(model)


class AccessMiddleware:
    """Checks Host (on loopback), Origin and the API key, in this order.

    Without any key everybody who gets this far may do everything. What is left of a key's limits goes into
    the headers of every answer.
    """

    def __init__(self, app: ASGIApp, *, gate: Gate, bound_host: str, root_path: str = "") -> None:
        self._app = app
        self._gate = gate
        self._is_loopback = is_loopback(bound_host.strip("[]"))
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            path = route_path(scope["path"], self._root_path)
            caller = self._check(path, Headers(scope=scope))
        except HelixFlowError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        if caller is None:
            await self._app(scope, receive, send)
            return
        scope[_CALLER] = caller
        await self._app(scope, receive, _with_limits(send, caller))

    def _check(self, path: str, headers: Headers) -> Caller | None:
        """Let the request through, and say whose it is; None where no key is asked for."""
        hosts = headers.getlist("host")
        if self._is_loopback and not (len(hosts) == 1 and is_loopback(_host_name(hosts[0]))):
            raise Forbidden("this server listens on loopback and answers only to that name (Host header)")
        for origin in headers.getlist("origin"):
            if hosts and origin in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                continue
            raise Forbidden("requests from pages of another origin are refused")
        if self._gate.is_open or path in PUBLIC_PATHS:
            return None
        return self._caller(path, headers)

    def _caller(self, path: str, headers: Headers) -> Caller:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        caller = self._gate.caller(offered.encode("latin-1"))  # as its bytes were
        if caller is None:
            raise Unauthenticated("a valid API key is needed: send 'Authorization: Bearer <key>'")
        is_inference = path in INFERENCE_PATHS or path.startswith(INFERENCE_PREFIXES)
        if not is_inference and not caller.key.may_administer:
            raise Forbidden("this key is for inference only; this route needs one that may administer")
        if path in COSTLY_PATHS and "inference" not in caller.key.scopes:
            raise Forbidden("this key may administer only; this route needs one for inference")
        return caller


def _with_limits(send: Send, caller: Caller) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *caller.headers()]}
        await send(message)

    return sending


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
