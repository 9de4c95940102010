"""The single table from exception class to HTTP status and OpenAI error type, and the two error envelopes:
Anthropic's on the routes of its clients, OpenAI's on all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from inference_server import errors
from inference_server.api.middleware.path import route_path

# class → (status, OpenAI `type`). A subclass without a row of its own is a bug; a test walks the tree.
STATUS: dict[type[errors.HelixFlowError], tuple[int, str]] = {
    errors.HelixFlowError: (500, "server_error"),
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.UnknownModel: (404, "invalid_request_error"),
    errors.ContextTooLong: (400, "invalid_request_error"),
    errors.UnsupportedParameter: (400, "invalid_request_error"),
    errors.RequestTooLarge: (413, "invalid_request_error"),
    errors.UnsupportedMediaType: (415, "invalid_request_error"),
    errors.Denied: (403, "permission_error"),
    errors.Unauthenticated: (401, "authentication_error"),
    errors.Forbidden: (403, "permission_error"),
    errors.Conflict: (409, "invalid_request_error"),
    errors.SleepUnsupported: (409, "invalid_request_error"),
    errors.OverLimit: (429, "rate_limit_error"),
    errors.QueueFull: (429, "rate_limit_error"),
    errors.RateLimited: (429, "rate_limit_error"),
    errors.QuotaExceeded: (429, "rate_limit_error"),
    errors.Unavailable: (503, "server_error"),
    errors.ModelLoadFailed: (503, "server_error"),
    errors.ModelLoading: (503, "server_error"),
    errors.InsufficientMemory: (503, "server_error"),
    errors.ShuttingDown: (503, "server_error"),
    errors.DeadlineExceeded: (504, "server_error"),
    errors.WorkerDied: (500, "server_error"),
    errors.InternalError: (500, "server_error"),
    errors.ConfigError: (500, "server_error"),
    errors.FetchFailed: (503, "server_error"),
}
DEFAULT_RETRY_AFTER_S = 10.0
CODE_HEADER = "x-helixflow-error"  # a proxy decides by it whether another server may be asked
ANTHROPIC_PREFIXES = ("/v1/messages", "/api/v1/messages")
_RETRY_STATUSES = frozenset({429, 503})
_ANTHROPIC_TYPES = {
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


def status_of(error: errors.HelixFlowError) -> int:
    """The HTTP status of an error."""
    return STATUS[type(error)][0]


def error_body(error: errors.HelixFlowError) -> bytes:
    """OpenAI's envelope, as JSON."""
    return envelope(error.message, STATUS[type(error)][1], error.param, error.code)


def envelope(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def anthropic_error_body(error: errors.HelixFlowError) -> bytes:
    """Anthropic's envelope, as JSON."""
    return anthropic_envelope(error.message, *STATUS[type(error)], error.param)


def anthropic_envelope(message: str, status: int, kind: str, param: str | None) -> bytes:
    """`{"type": "error", "error": {"type", "message"}}`; the message names the field at fault."""
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if kind == "server_error" else kind)
    where = "" if param is None or param in message else f"{param}: "
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": f"{where}{message}"}})


def error_response(error: errors.HelixFlowError, scope: Scope) -> Response:
    """The whole answer: status, envelope, and the headers that go with it. `scope` is the request's."""
    status, kind = STATUS[type(error)]
    headers = {}
    if status in _RETRY_STATUSES:
        seconds = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return refusal(scope, status, kind, error.message, error.code, param=error.param, headers=headers)


def refusal(
    scope: Scope,
    status: int,
    kind: str,
    message: str,
    code: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The same from its parts."""
    if _is_anthropics(scope):
        body = anthropic_envelope(message, status, kind, param)
    else:
        body = envelope(message, kind, param, code)
    return Response(body, status, {CODE_HEADER: code, **(headers or {})}, media_type="application/json")


def internal_error_response(scope: Scope) -> Response:
    """The answer to an exception that nobody has foreseen; it tells nothing of that."""
    error = errors.InternalError("an internal error happened; the server's log has it")
    return error_response(error, scope)


def _is_anthropics(scope: Scope) -> bool:
    return route_path(scope["path"], scope.get("root_path", "")).startswith(ANTHROPIC_PREFIXES)
