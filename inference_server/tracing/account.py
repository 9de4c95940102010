"""What is told of one HTTP request when it is over, and how a log says it: never a prompt, key or address."""

from __future__ import annotations

from dataclasses import dataclass

from inference_server.tracing.context import TraceContext
from inference_server.tracing.timeline import CANCELLED, Timeline

_DIGITS = 4  # a tenth of a millisecond


@dataclass(frozen=True, slots=True)
class RequestAccount:
    """One HTTP request. `endpoint` is a route of ours or "other", `key` the name of the caller's key, `trace`
    the span that it is, or else that it came from. Times are seconds on the server's monotonic clock.
    """

    request_id: str
    method: str
    endpoint: str
    status: int
    start_s: float
    end_s: float
    key: str
    trace: TraceContext | None
    timeline: Timeline

    @property
    def has_failed(self) -> bool:
        """Whether the server owes an explanation: a 5xx, or an error within a stream."""
        breaks_off = bool(self.timeline.error) and self.timeline.error != CANCELLED
        return self.status >= 500 or (self.status < 400 and breaks_off)


def headline(account: RequestAccount) -> str:
    """What it was and how it ended, in short."""
    return f"{account.method} {account.endpoint} {account.status}"


def log_fields(account: RequestAccount) -> dict[str, object]:
    """Everything else; what is unknown or does not apply is left out. Names end in their units."""
    timeline, trace = account.timeline, account.trace
    fields: dict[str, object] = {
        "request_id": account.request_id,
        "trace_id": "" if trace is None else trace.trace_id,
        "method": account.method,
        "endpoint": account.endpoint,
        "status": account.status,
        "key": account.key,
        "model": timeline.model,
        "error": timeline.error,
        "total_s": round(account.end_s - account.start_s, _DIGITS),
        "ttft_s": None if timeline.ttft_s is None else round(timeline.ttft_s, _DIGITS),
        **{f"{name}_s": round(seconds, _DIGITS) for name, seconds in timeline.seconds().items()},
    }
    if timeline.num_prompt_tokens:
        fields |= {
            "prompt_tokens": timeline.num_prompt_tokens,
            "cached_tokens": timeline.num_cached_tokens,
            "output_tokens": timeline.num_output_tokens,
            "finish_reason": ",".join(timeline.finish_reasons),
        }
    return {name: value for name, value in fields.items() if value is not None and value != ""}
