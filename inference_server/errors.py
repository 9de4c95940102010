"""The one exception tree. It knows no HTTP: `api/errors.py` maps each class to a status.

    HelixFlowError
    ├── InvalidRequest            the request can never succeed as it is
    │   ├── UnknownModel
    │   ├── ContextTooLong
    │   ├── UnsupportedParameter
    │   ├── RequestTooLarge
    │   └── UnsupportedMediaType
    ├── Denied                    who asks
    │   ├── Unauthenticated
    │   └── Forbidden
    ├── Conflict                  what a model is now does not allow it
    │   └── SleepUnsupported
    ├── OverLimit                 the same request may succeed later
    │   ├── QueueFull
    │   ├── RateLimited
    │   └── QuotaExceeded
    ├── Unavailable               the model or the server cannot serve now
    │   ├── ModelLoadFailed
    │   ├── ModelLoading          not in memory yet when the request's deadline passed
    │   ├── InsufficientMemory
    │   └── ShuttingDown
    ├── DeadlineExceeded
    ├── WorkerDied                the process that ran the request is gone
    ├── InternalError             our own bug, or a fault inside a model
    └── ConfigError               settings or models.yaml; raised at start, reload and by `check-config`
        └── FetchFailed           a checkpoint could not be fetched, verified or converted

Every class has a stable `code` that clients may rely on.
"""

from __future__ import annotations

from typing import ClassVar


class HelixFlowError(Exception):
    """Base of everything HelixFlow raises on purpose.

    Args:
        message: what happened and what the reader can do; free of paths, keys and prompts.
        param: the request field or setting at fault, if one is.
        retry_after_s: seconds after which the same call may succeed, if that is known.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(HelixFlowError):  # noqa: N818 - the name says what happened
    """A field is missing, malformed or out of range."""

    code = "invalid_value"


class UnknownModel(InvalidRequest):
    """No configured model or alias has this name."""

    code = "model_not_found"


class ContextTooLong(InvalidRequest):
    """Prompt plus requested output exceed the model's `max_model_len`."""

    code = "context_length_exceeded"


class UnsupportedParameter(InvalidRequest):
    """The field is known but not supported, here or by this model."""

    code = "unsupported_parameter"


class RequestTooLarge(InvalidRequest):
    """The body exceeds the size limit."""

    code = "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class Denied(HelixFlowError):  # noqa: N818
    """The caller may not do this."""

    code = "forbidden"


class Unauthenticated(Denied):
    """No valid key came with the request."""

    code = "invalid_api_key"


class Forbidden(Denied):
    """The key is valid, but lacks the scope."""

    code = "forbidden"


class Conflict(HelixFlowError):  # noqa: N818
    """What a model is, or is doing now, does not allow this."""

    code = "conflict"


class SleepUnsupported(Conflict):
    """The model cannot sleep, or cannot now; the message says why. It goes on as it was."""

    code = "sleep_unsupported"


class OverLimit(HelixFlowError):  # noqa: N818
    """A limit was reached; nothing was started."""

    code = "rate_limit_exceeded"


class QueueFull(OverLimit):
    """The bounded queue of the model or the server is full."""

    code = "queue_full"


class RateLimited(OverLimit):
    """The key's rate limit was reached."""

    code = "rate_limit_exceeded"


class QuotaExceeded(OverLimit):
    """The key's quota is used up."""

    code = "quota_exceeded"


class Unavailable(HelixFlowError):  # noqa: N818
    """The server cannot serve this now."""

    code = "unavailable"


class ModelLoadFailed(Unavailable):
    """The model could not be loaded; other models are unaffected."""

    code = "model_load_failed"


class ModelLoading(Unavailable):
    """The model was still being brought into memory when the request's deadline passed."""

    code = "model_loading"


class InsufficientMemory(Unavailable):
    """The model does not fit in the memory budget, even after evicting what may be evicted."""

    code = "insufficient_memory"


class ShuttingDown(Unavailable):
    """The server is draining, or has stopped before the request had ended."""

    code = "shutting_down"


class DeadlineExceeded(HelixFlowError):  # noqa: N818
    """The request's deadline passed, in the queue or during generation."""

    code = "deadline_exceeded"


class WorkerDied(HelixFlowError):  # noqa: N818
    """The worker process ended while it held this request."""

    code = "worker_died"


class InternalError(HelixFlowError):
    """A bug of ours, or a fault inside one model's forward pass."""

    code = "internal_error"


class ConfigError(HelixFlowError):
    """A setting, flag or `models.yaml` entry is wrong."""

    code = "config_error"


class FetchFailed(ConfigError):  # noqa: N818
    """A checkpoint could not be fetched, verified or converted."""

    code = "fetch_failed"
