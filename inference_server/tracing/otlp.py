"""Spans of requests through OpenTelemetry, sent over OTLP/HTTP by a thread of its own.

A request's own span begins with it, since its id is told to the client; the spans of its phases are made
when it is over, from the times that were written down anyway. Sampling, headers, service name and batches are
set by OpenTelemetry's own variables (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME …).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TraceState

from inference_server import __version__
from inference_server.tracing.account import RequestAccount, headline
from inference_server.tracing.context import TraceContext
from inference_server.tracing.timeline import Timeline

SERVICE_NAME = "helixflow"  # unless the environment says another one
_OPERATIONS = {  # of OpenTelemetry's conventions for generative AI, by the end of the route
    "chat/completions": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
Attributes = dict[str, str | int | float | list[str]]


class OtlpTracer:
    """A `Tracer` that sends what it sees to `endpoint`, or where the environment says.

    `clock` is the server's (seconds, monotonic), `wall_clock` gives nanoseconds since the epoch.
    """

    flush_s = 2.0

    def __init__(
        self,
        endpoint: str | None,
        environment: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._provider = TracerProvider(resource=_resource(environment), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("inference_server", __version__)

    def begin(self, parent: TraceContext | None, start_s: float) -> OtlpTrace:
        """See `Tracer`."""
        epoch_ns = self._wall_clock() - round(self._clock() * 1e9)  # of the monotonic clock, just now
        span = self._tracer.start_span(
            "request",
            context=_remote(parent),
            kind=SpanKind.SERVER,
            start_time=epoch_ns + round(start_s * 1e9),
        )
        return OtlpTrace(self._tracer, span, epoch_ns)

    def shut_down(self, timeout_s: float) -> None:
        """See `Tracer`."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(timeout_s)  # it would try for much longer where nobody listens


class OtlpTrace:
    """One request and its phases. `epoch_ns`: when the monotonic clock was 0, since the epoch."""

    is_ours = True

    def __init__(self, tracer: trace.Tracer, span: Span, epoch_ns: int) -> None:
        own = span.get_span_context()
        self.context: TraceContext | None = TraceContext(
            f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags.sampled
        )
        self._tracer = tracer
        self._span = span
        self._epoch_ns = epoch_ns

    def end(self, account: RequestAccount) -> None:
        """See `RequestTrace`."""
        span = self._span
        if span.is_recording():
            parent = trace.set_span_in_context(span, Context())
            for phase in account.timeline.phases:
                child = self._tracer.start_span(
                    phase.name,
                    context=parent,
                    start_time=self._ns(phase.start_s),
                    attributes={"gen_ai.request.model": account.timeline.model},
                )
                child.end(self._ns(phase.end_s))
            span.update_name(headline(account).rpartition(" ")[0])
            span.set_attributes(request_attributes(account))
            if account.has_failed:
                span.set_status(Status(StatusCode.ERROR))
        span.end(self._ns(account.end_s))

    def _ns(self, time_s: float) -> int:
        return self._epoch_ns + round(time_s * 1e9)


def request_attributes(account: RequestAccount) -> Attributes:
    """OpenTelemetry's names for HTTP servers and generative AI, and a few of ours."""
    found: Attributes = {
        "http.request.method": account.method,
        "http.route": account.endpoint,
        "http.response.status_code": account.status,
        "helixflow.request_id": account.request_id,
    }
    if account.key:
        found["helixflow.key"] = account.key
    if account.timeline.error or account.status >= 500:
        found["error.type"] = account.timeline.error or str(account.status)
    if account.timeline.model:
        found |= _model_attributes(account.endpoint, account.timeline)
    return found


def _model_attributes(endpoint: str, timeline: Timeline) -> Attributes:
    found: Attributes = {
        "gen_ai.operation.name": _OPERATIONS.get(endpoint.removeprefix("/v1/"), "other"),
        "gen_ai.provider.name": SERVICE_NAME,
        "gen_ai.request.model": timeline.model,
    }
    if timeline.num_prompt_tokens:
        found["gen_ai.usage.input_tokens"] = timeline.num_prompt_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = timeline.num_cached_tokens
        found["gen_ai.usage.output_tokens"] = timeline.num_output_tokens
    if timeline.finish_reasons:
        found["gen_ai.response.finish_reasons"] = list(timeline.finish_reasons)
    if timeline.ttft_s is not None:
        found["gen_ai.server.time_to_first_token"] = timeline.ttft_s
    return found


def _remote(parent: TraceContext | None) -> Context:
    if parent is None:
        return Context()
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.is_sampled else trace.TraceFlags.DEFAULT)
    state = TraceState.from_header([parent.state]) if parent.state else TraceState()
    caller = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=flags,
        trace_state=state,
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(caller), Context())


def _resource(environment: Mapping[str, str]) -> Resource:
    attributes = {"service.version": __version__}
    is_named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create(attributes if is_named else attributes | {"service.name": SERVICE_NAME})
