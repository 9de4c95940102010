"""OpenTelemetry is there for those who ask for it, and costs nobody else anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from inference_server.errors import ConfigError
from inference_server.tracing.context import context_from
from inference_server.tracing.tracer import NoTracer, tracer_for


def test_a_server_without_traces_never_imports_opentelemetry() -> None:
    code = "import sys, inference_server.app; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert isinstance(tracer_for(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}), NoTracer)


def test_traces_without_the_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "inference_server.tracing.otlp", raising=False)
    for endpoint, environment in (
        ("http://localhost:1", {}),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'helixflow\[tracing\]'") as raised:
            tracer_for(endpoint, environment)
        assert raised.value.param == "otlp_traces_endpoint"


def test_whoever_follows_nothing_still_knows_the_callers_trace() -> None:
    parent = context_from(["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"])
    trace = NoTracer().begin(parent, 0.0)
    assert (trace.context, trace.is_ours) == (parent, False)
