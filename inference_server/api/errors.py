"""The single table from exception class to HTTP status and OpenAI error type, and the error envelope."""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from inference_server import errors

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
_RETRY_STATUSES = frozenset({429, 503})


def status_of(error: errors.HelixFlowError) -> int:
    """The HTTP status of an error."""
    return STATUS[type(error)][0]


def error_body(error: errors.HelixFlowError) -> bytes:
    """OpenAI's envelope, as JSON."""
    return envelope(error.message, STATUS[type(error)][1], error.param, error.code)


def envelope(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_response(error: errors.HelixFlowError) -> Response:
    """The whole answer: status, envelope, and the headers that go with it."""
    status = status_of(error)
    headers = {CODE_HEADER: error.code}
    if status in _RETRY_STATUSES:
        seconds = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(error), status, headers, media_type="application/json")


def internal_error_response() -> Response:
    """The answer to an exception that nobody has foreseen; it tells nothing of that."""
    return error_response(errors.InternalError("an internal error happened; the server's log has it"))
