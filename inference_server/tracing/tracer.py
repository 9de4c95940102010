"""Who follows requests: nobody by default, or OpenTelemetry (`otlp.py`), which is imported only if asked for.

Owner: the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from inference_server.errors import ConfigError
from inference_server.tracing.account import RequestAccount
from inference_server.tracing.context import TraceContext

# OpenTelemetry's own variables: a base address for all signals, and the whole address for traces.
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class RequestTrace(Protocol):
    """One request that is followed. `context` is its own span, or the caller's where it has none."""

    context: TraceContext | None

    @property
    def is_ours(self) -> bool:
        """Whether `context` is a span of this server, which the client may want to know."""

    def end(self, account: RequestAccount) -> None:
        """It is over."""


class Tracer(Protocol):
    """Called on the event loop; must be quick and must not raise.

    `flush_s`: seconds that sending the last spans may take.
    """

    @property
    def flush_s(self) -> float:
        """See the class."""

    def begin(self, parent: TraceContext | None, start_s: float) -> RequestTrace:
        """A request has come, `start_s` on the server's monotonic clock, from this span of its caller's."""

    def shut_down(self, timeout_s: float) -> None:
        """Send what is left, within this time. Blocks; nothing is begun or ended afterwards."""


class Untraced:
    """A request that nobody follows here; its caller's trace is still known to the log."""

    __slots__ = ("context",)
    is_ours = False

    def __init__(self, parent: TraceContext | None) -> None:
        self.context = parent

    def end(self, account: RequestAccount) -> None:
        """See `RequestTrace`."""


class NoTracer:
    """Follows nothing."""

    flush_s = 0.0

    def begin(self, parent: TraceContext | None, start_s: float) -> RequestTrace:
        """See `Tracer`."""
        return Untraced(parent)

    def shut_down(self, timeout_s: float) -> None:
        """See `Tracer`."""


def tracer_for(endpoint: str | None, environment: Mapping[str, str]) -> Tracer:
    """The tracer of a server. `endpoint` is the setting `otlp_traces_endpoint`; the environment may have one.

    Raises:
        ConfigError: traces are asked for, and OpenTelemetry is not installed.
    """
    if endpoint is None and not any(environment.get(name) for name in ENDPOINT_VARIABLES):
        return NoTracer()
    try:
        from inference_server.tracing.otlp import OtlpTracer
    except ImportError as error:
        raise ConfigError(
            "traces are asked for (otlp_traces_endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT in the environment), "
            f"and {error.name} is not installed: pip install 'helixflow[tracing]'",
            param="otlp_traces_endpoint",
        ) from error
    return OtlpTracer(endpoint, environment)
