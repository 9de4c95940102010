"""How a server leaves: on a real process, by signal, with streams running and connections kept."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.server.conftest import WriteConfig
from tests.server.running import RunningServer, is_alive, running_server
from tests.server.test_faults import events, gauge, stream_body, until

CONFIG = "models:\n  slow: {source: 'scripted:?output_tokens=100000&step_ms=20', preload: true}\n"
BODY = json.dumps({"model": "slow", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
JSON = {"content-type": "application/json"}


@pytest.fixture
def server(write_config: WriteConfig) -> Iterator[RunningServer]:
    """One that serves on for two seconds after it was told to stop."""
    flags = ("--shutdown-grace", "2s", "--shutdown-timeout", "8s")
    with running_server(write_config(CONFIG), *flags) as running:
        yield running


def is_refused(server: RunningServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def shutdown_left_s(server: RunningServer) -> float:
    page = server.client.get("/metrics").text
    (line,) = (line for line in page.splitlines() if line.startswith("helixflow_shutdown_left_seconds "))
    return float(line.rpartition(" ")[2])


def test_in_its_grace_a_server_is_not_ready_serves_and_closes_connections(server: RunningServer) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as kept:
        kept.request("POST", "/v1/chat/completions", BODY, JSON)
        first = kept.getresponse()
        first.read()
        assert not first.will_close
        assert shutdown_left_s(server) == 8
        told_s = time.monotonic()
        server.signal(signal.SIGTERM)
        until(lambda: server.client.get("/readyz").status_code == 503, timeout_s=1)
        assert server.client.get("/livez").status_code == 200
        assert 0 < shutdown_left_s(server) < 8
        kept.request("POST", "/v1/chat/completions", BODY, JSON)  # on the connection of before
        late = kept.getresponse()
        assert (late.status, late.will_close) == (200, True)
        assert json.loads(late.read())["usage"]["completion_tokens"] == 2
        assert time.monotonic() - told_s < 2
    assert server.process.wait(timeout=10) == 0
    assert time.monotonic() - told_s >= 2


def test_after_its_grace_it_refuses_and_ends_as_soon_as_the_last_stream_has(server: RunningServer) -> None:
    told_s = time.monotonic()
    with server.client.stream(
        "POST", "/v1/chat/completions", json=stream_body("slow", max_tokens=180)
    ) as response:
        received = events(response)
        next(received)
        server.signal(signal.SIGTERM)
        until(lambda: server.chat("x", model="slow", max_tokens=1).status_code == 503, timeout_s=4)
        refused = server.chat("x", model="slow")
        assert refused.headers["x-helixflow-error"] == "shutting_down"
        assert refused.headers["connection"] == "close"
        rest = list(received)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(timeout=10) == 0
    assert time.monotonic() - told_s < 8
    assert is_refused(server)


def test_a_server_that_is_still_loading_ends_at_once(write_config: WriteConfig) -> None:
    config = write_config("models: {cold: {source: 'scripted:?load_ms=60000', preload: true}}\n")
    with running_server(config, ready="/livez") as server:
        until(lambda: server.client.get("/health/startup").json()["models"][0]["phase"] == "load")
        family = server.children()
        told_s = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - told_s < 3
    until(lambda: not any(is_alive(pid) for pid in family), timeout_s=2)


@pytest.mark.slow
def test_who_is_not_done_in_time_is_told_why_and_the_server_is_gone_by_then(
    server: RunningServer,
) -> None:
    with server.client.stream("POST", "/v1/chat/completions", json=stream_body("slow")) as response:
        received = events(response)
        next(received)
        with ThreadPoolExecutor() as threads:
            whole = threads.submit(server.chat, "x", model="slow", ignore_eos=True, max_tokens=10_000)
            until(lambda: gauge(server, "vllm:num_requests_running", "slow") == 2)
            told_s = time.monotonic()
            server.signal(signal.SIGTERM)
            last = list(received)[-1]
            cut = whole.result()
    assert json.loads(last)["error"]["code"] == "shutting_down"
    assert (cut.status_code, cut.headers["x-helixflow-error"]) == (
        503,
        "shutting_down",
    )  # proxies ask another
    assert server.process.wait(timeout=10) == 0
    assert 7 < time.monotonic() - told_s < 8


def test_a_worker_inside_a_long_step_does_not_keep_the_server(write_config: WriteConfig) -> None:
    config = write_config("models: {stuck: {source: 'scripted:?hang_step=2', preload: true}}\n")
    with running_server(config, "--shutdown-timeout", "1500ms") as server:
        family = server.children()
        with server.client.stream("POST", "/v1/chat/completions", json=stream_body("stuck")) as response:
            received = events(response)
            next(received)
            told_s = time.monotonic()
            server.signal(signal.SIGTERM)
            assert json.loads(list(received)[-1])["error"]["code"] == "shutting_down"
        assert server.process.wait(timeout=10) == 0
        assert time.monotonic() - told_s < 4
    until(lambda: not any(is_alive(pid) for pid in family), timeout_s=2)


@pytest.mark.parametrize("second", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_ends_server_and_workers_at_once(
    server: RunningServer, second: signal.Signals
) -> None:
    family = server.children()
    with server.client.stream("POST", "/v1/chat/completions", json=stream_body("slow")) as response:
        received = events(response)
        next(received)
        server.signal(signal.SIGTERM)
        until(lambda: server.client.get("/readyz").status_code == 503, timeout_s=1)
        told_s = time.monotonic()
        os.kill(server.process.pid, second)
        assert server.process.wait(timeout=5) == 130
        assert time.monotonic() - told_s < 1
    until(lambda: not any(is_alive(pid) for pid in family), timeout_s=2)
