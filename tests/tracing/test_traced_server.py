"""A real server that sends its traces to a real receiver and writes JSON lines."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import RunningServer, running_server
from tests.tracing.collector import Collector, ReceivedSpan, collecting

CONFIG = """
models:
  talker: {source: 'scripted:?output_tokens=8', preload: true, aliases: [parrot]}
  sleepy: {source: 'scripted:?output_tokens=3&load_ms=200'}
  broken: {source: 'scripted:?load_error=oom'}
  embedder: {source: scripted, task: embed}
"""
ALICE = "alice-0123456789abcdef"
KEYS = f"keys:\n- {{name: alice, key: {ALICE}, scopes: [inference]}}\n"
SECRET = "the-secret-of-the-prompt"
SERVER_KIND = 2


@dataclass(frozen=True)
class Observed:
    """A server and what it tells."""

    server: RunningServer
    collector: Collector

    def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {ALICE}"} | (headers or {})
        return self.server.client.post(path, json=body, headers=headers)

    def complete(self, model: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", headers, model=model, prompt=SECRET, **fields)

    def lines(self) -> list[dict[str, Any]]:
        """Every line that the server and its children have written to its end."""
        whole, _, _ = self.server.log.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def line_of(self, response: httpx.Response) -> dict[str, Any]:
        """The line about the request with this answer, which may be written a moment after it."""
        wanted = response.headers["x-request-id"]
        deadline_s = time.monotonic() + 10
        while not (found := [line for line in self.lines() if line.get("request_id") == wanted]):
            assert time.monotonic() < deadline_s, f"no line about {wanted}"
            time.sleep(0.01)
        (line,) = found
        return line


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "models.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "keys.yaml").write_text(KEYS, encoding="utf-8")
    with (
        collecting() as collector,
        running_server(
            folder / "models.yaml",
            *("--log-json", "--otlp-traces-endpoint", collector.url),
            *("--api-key-file", str(folder / "keys.yaml")),
            env={"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"},
        ) as server,
    ):
        yield Observed(server, collector)


def names(spans: list[ReceivedSpan]) -> list[str]:
    return [span.name for span in spans]


def test_a_request_continues_its_callers_trace_with_a_span_per_phase(observed: Observed) -> None:
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace_id}-{caller}-01", "tracestate": "vendor=1"}
    before_s = time.time()
    response = observed.complete("sleepy", headers)
    after_s = time.time()
    assert response.status_code == 200
    root, *phases = observed.collector.trace(trace_id, 6)
    assert (root.name, root.kind, root.parent_id) == ("POST /v1/completions", SERVER_KIND, caller)
    assert root.state == "vendor=1"
    assert response.headers["traceparent"] == f"00-{trace_id}-{root.span_id}-01"
    assert names(phases) == ["queue", "load", "queue", "prefill", "decode"]
    assert {phase.parent_id for phase in phases} == {root.span_id}
    assert before_s - 0.1 <= root.start_s <= phases[0].start_s
    for earlier, later in itertools.pairwise(phases):
        assert earlier.end_s == pytest.approx(later.start_s, abs=1e-4)
    assert phases[-1].end_s <= root.end_s <= after_s + 0.1
    load = phases[1]
    assert 0.15 < load.end_s - load.start_s < after_s - before_s
    usage = response.json()["usage"]
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "helixflow.request_id": response.headers["x-request-id"],
        "helixflow.key": "alice",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "helixflow",
        "gen_ai.request.model": "sleepy",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.server.time_to_first_token": pytest.approx(phases[-1].start_s - phases[0].start_s, abs=1e-3),
    }
    assert root.resource["service.name"] == "helixflow"
    assert root.resource["deployment.environment"] == "test"


def test_a_stream_begins_a_trace_of_its_own_and_an_alias_is_told_by_its_models_name(
    observed: Observed,
) -> None:
    body = {"messages": [{"role": "user", "content": SECRET}], "stream": True}
    response = observed.post("/v1/chat/completions", model="parrot", **body)
    assert response.text.endswith("data: [DONE]\n\n")
    trace_id = response.headers["traceparent"].split("-")[1]
    root, *phases = observed.collector.trace(trace_id, 4)
    assert root.parent_id == ""
    assert names(phases) == ["queue", "prefill", "decode"]
    assert root.attributes["gen_ai.request.model"] == "talker"
    assert observed.line_of(response)["trace_id"] == trace_id


def test_embeddings_and_failures_are_traced_too(observed: Observed) -> None:
    embedded = observed.post("/v1/embeddings", model="embedder", input=[SECRET])
    root, *phases = observed.collector.trace(embedded.headers["traceparent"].split("-")[1], 3)
    assert root.attributes["gen_ai.operation.name"] == "embeddings"
    assert names(phases)[-1] == "prefill"
    assert not root.is_error
    failed = observed.complete("broken")
    assert failed.status_code == 503
    root, *_ = observed.collector.trace(failed.headers["traceparent"].split("-")[1], 2)
    assert root.is_error
    assert root.attributes["error.type"] == "insufficient_memory"
    unknown = observed.complete("nobody")
    root, *phases = observed.collector.trace(unknown.headers["traceparent"].split("-")[1], 1)
    assert (root.is_error, phases, root.attributes["http.response.status_code"]) == (False, [], 404)
    assert "gen_ai.request.model" not in root.attributes


def test_a_callers_decision_not_to_sample_is_kept(observed: Observed) -> None:
    trace_id = "0123456789abcdef0123456789abcdef"
    response = observed.complete("talker", {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-00"})
    assert response.headers["traceparent"].startswith(f"00-{trace_id}-")
    assert response.headers["traceparent"].endswith("-00")
    later = observed.complete("talker")  # once its spans are here, those of the first would be
    observed.collector.trace(later.headers["traceparent"].split("-")[1], 4)
    assert not [span for span in observed.collector.spans if span.trace_id == trace_id]
    assert observed.line_of(response)["trace_id"] == trace_id


def test_a_line_per_request_says_how_it_went(observed: Observed) -> None:
    response = observed.complete("talker", {"x-request-id": "mine-1"})
    line = observed.line_of(response)
    assert line | {"level": "info", "key": "alice", "model": "talker", "status": 200} == line
    assert (line["request_id"], line["endpoint"]) == ("mine-1", "/v1/completions")
    usage = response.json()["usage"]
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["output_tokens"] == usage["completion_tokens"]
    assert line["finish_reason"] == "stop"
    parts_s = [line[name] for name in ("queue_s", "prefill_s", "decode_s")]
    assert line["ttft_s"] == pytest.approx(sum(parts_s[:2]), abs=0.001)
    assert sum(parts_s) <= line["total_s"] + 0.001
    refused = observed.server.client.post("/v1/completions", json={}, headers={"x-api-key": "wrong"})
    assert observed.line_of(refused).keys() & {"key", "model", "prompt_tokens"} == set()
    assert observed.line_of(refused)["status"] == 401


def test_neither_lines_nor_spans_hold_prompts_keys_addresses_or_forged_lines(observed: Observed) -> None:
    forged = {"x-request-id": "a b\tc", "user-agent": "agent-7", "x-forwarded-for": "203.0.113.9"}
    response = observed.complete("talker", forged)
    observed.line_of(response)
    assert response.headers["x-request-id"].startswith("req-"), "what may not be echoed is replaced"
    observed.complete("no\u2028such\nmodel")
    observed.post("/v1/embeddings", model="embedder", input=SECRET)
    observed.server.client.get("/v1/models/%0d%0aforged?key=" + SECRET, headers={"x-api-key": ALICE})
    last = observed.complete("talker")
    observed.collector.trace(last.headers["traceparent"].split("-")[1], 4)
    told = observed.server.log + b"".join(observed.collector.raw).decode("latin-1")
    for secret in (SECRET, ALICE, "agent-7", "203.0.113.9", "127.0.0.1", "forged"):
        assert secret not in told.replace(observed.server.url, "").replace(observed.collector.url, "")
    assert all("message" in line for line in observed.lines())


def test_probes_and_scrapes_fill_neither_log_nor_traces(observed: Observed) -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/metrics/epp"):
        assert observed.server.client.get(path).status_code == 200
    observed.line_of(observed.complete("talker"))
    roots = {span.name for span in observed.collector.spans if span.kind == SERVER_KIND}
    assert all(name.startswith(("POST /v1/", "GET /v1/", "GET other")) for name in roots)
    endpoints = {line.get("endpoint") for line in observed.lines()}
    assert not {endpoint for endpoint in endpoints if endpoint and not endpoint.startswith(("/v1", "other"))}


def test_the_last_spans_are_sent_when_the_server_ends_and_a_dead_receiver_holds_nothing_up(
    tmp_path: Path,
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {talker: {source: 'scripted:?output_tokens=2', preload: true}}\n")
    with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url.removesuffix("/v1/traces")}
        with running_server(config, env=environment) as server:
            response = server.chat("hi", model="talker")
            assert server.stop() == 0
        collector.trace(response.headers["traceparent"].split("-")[1], 4, timeout_s=0)
    with running_server(config, env=environment) as server:  # nobody listens there any more
        assert server.chat("hi", model="talker").status_code == 200
        started_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started_s < 10


def test_without_an_address_nothing_is_traced_and_a_callers_trace_is_still_in_the_log(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {talker: {source: 'scripted:?output_tokens=2', preload: true}}\n")
    with running_server(config, env={"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) as server:
        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        body = {"model": "talker", "prompt": "hi"}
        response = server.client.post("/v1/completions", json=body, headers=headers)
        assert "traceparent" not in response.headers
        assert server.stop() == 0
        assert "trace_id=4bf92f3577b34da6a3ce929d0e0e4736" in server.log
