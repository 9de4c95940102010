"""Deaths, disconnects, overload and drains, on a real server with real processes and scripted models."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import WriteConfig
from tests.server.running import RunningServer, is_alive, running_server

SLOW_MODEL = "scripted:?output_tokens=100000&step_ms=20"


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Wait for something that another process does."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def gauge(server: RunningServer, name: str, model: str) -> float:
    line = next(
        line
        for line in server.client.get("/metrics").text.splitlines()
        if line.startswith(f'{name}{{model_name="{model}"}}')
    )
    return float(line.rpartition(" ")[2])


def stream_body(model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": model, "messages": messages, "stream": True, "ignore_eos": True, **fields}


def events(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


@pytest.fixture
def slow_server(write_config: WriteConfig) -> Iterator[RunningServer]:
    """A server with one slow scripted model, loaded."""
    config = write_config(f"models:\n  slow:\n    source: {SLOW_MODEL}\n    preload: true\n")
    with running_server(config, "--max-num-queued-reqs", "2", "--max-num-seqs", "2") as server:
        yield server


def worker_pid(server: RunningServer) -> int:
    """The one worker: a child of the fork server, which is a child of the server."""
    grandchildren = [pid for pid in server.children() if parent_of(pid) != server.process.pid]
    assert len(grandchildren) == 1, grandchildren
    return grandchildren[0]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def test_a_killed_worker_fails_its_stream_and_the_next_request_reloads(slow_server: RunningServer) -> None:
    first_pid = worker_pid(slow_server)
    with slow_server.client.stream("POST", "/v1/chat/completions", json=stream_body("slow")) as response:
        received = events(response)
        for _ in range(4):
            next(received)
        os.kill(first_pid, signal.SIGKILL)
        last = list(received)[-1]
    assert json.loads(last)["error"]["code"] == "worker_died"
    assert slow_server.client.get("/health/live").status_code == 200
    answer = slow_server.chat("again", model="slow", max_tokens=3)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3
    assert worker_pid(slow_server) != first_pid


def test_a_killed_server_leaves_no_process_behind(write_config: WriteConfig) -> None:
    config = write_config(f"models:\n  slow:\n    source: {SLOW_MODEL}\n    preload: true\n")
    with running_server(config) as server:
        family = server.children()
        assert len(family) == 2
        threading.Thread(target=_ignore_errors, args=(server,), daemon=True).start()
        until(lambda: gauge(server, "vllm:num_requests_running", "slow") == 1)
        server.process.kill()
        server.process.wait()
        until(lambda: not any(is_alive(pid) for pid in family), timeout_s=2)


def _ignore_errors(server: RunningServer) -> None:
    try:
        httpx.post(f"{server.url}/v1/chat/completions", json=stream_body("slow"), timeout=30)
    except httpx.HTTPError:
        pass


def test_a_client_that_leaves_frees_its_place(slow_server: RunningServer) -> None:
    with slow_server.client.stream("POST", "/v1/chat/completions", json=stream_body("slow")) as response:
        received = events(response)  # dropping the iterator would close the response
        next(received)
        until(lambda: gauge(slow_server, "vllm:num_requests_running", "slow") == 1)
    until(lambda: gauge(slow_server, "vllm:num_requests_running", "slow") == 0, timeout_s=2)
    assert slow_server.client.get("/models").json()["data"][0]["num_leases"] == 0


def test_a_full_queue_is_429_with_retry_after(slow_server: RunningServer) -> None:
    streams = [
        slow_server.client.stream("POST", "/v1/chat/completions", json=stream_body("slow")) for _ in range(4)
    ]
    for entered in streams:
        entered.__enter__()
    try:
        refused = slow_server.chat("me too", model="slow")
    finally:
        for entered in streams:
            entered.__exit__(None, None, None)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    until(lambda: slow_server.client.get("/models").json()["data"][0]["num_leases"] == 0)
    assert slow_server.chat("now", model="slow", max_tokens=2).status_code == 200


def test_sigterm_lets_streams_finish_and_refuses_new_ones(slow_server: RunningServer) -> None:
    body = stream_body("slow", max_tokens=60)
    with slow_server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        received = events(response)
        next(received)
        slow_server.signal(signal.SIGTERM)
        until(lambda: slow_server.client.get("/health/ready").status_code == 503, timeout_s=1)
        assert slow_server.client.get("/health/live").status_code == 200
        refused = slow_server.chat("too late", model="slow")
        rest = list(received)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
    assert slow_server.process.wait(timeout=10) == 0
    assert slow_server.children() == []


def test_a_stream_that_outlasts_the_drain_is_ended(write_config: WriteConfig) -> None:
    config = write_config(f"models:\n  slow:\n    source: {SLOW_MODEL}\n    preload: true\n")
    with running_server(config, "--shutdown-timeout", "1s") as server:
        with server.client.stream("POST", "/v1/chat/completions", json=stream_body("slow")) as response:
            received = events(response)
            next(received)
            server.signal(signal.SIGTERM)
            last = list(received)[-1]
        assert json.loads(last)["error"]["code"] == "shutting_down"
        assert server.process.wait(timeout=10) == 0


@pytest.mark.slow
def test_a_server_that_was_stopped_and_goes_on_takes_no_worker_for_silent(write_config: WriteConfig) -> None:
    config = write_config("models: {m: {source: scripted, preload: true}}\n")
    with running_server(config, "--hang-timeout", "3s") as server:
        pid = worker_pid(server)
        os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(server.process.pid, signal.SIGCONT)
        time.sleep(2.5)  # it has looked twice
        assert server.chat("x", model="m").status_code == 200
        assert worker_pid(server) == pid


def test_a_fault_in_one_model_never_reaches_another(write_config: WriteConfig) -> None:
    config = write_config(
        "models:\n"
        "  good: {source: 'scripted:?output_tokens=100000&step_ms=10', preload: true}\n"
        "  crashing: {source: 'scripted:?crash_step=3'}\n"
        "  failing: {source: 'scripted:?fail_step=1'}\n"
        "  unloadable: {source: 'scripted:?load_error=oom'}\n"
    )
    with running_server(config) as server:
        with server.client.stream(
            "POST", "/v1/chat/completions", json=stream_body("good", max_tokens=80)
        ) as response:
            received = events(response)
            next(received)
            crashed = server.chat("x", model="crashing")
            failed = server.chat("x", model="failing")
            unloadable = server.chat("x", model="unloadable")
            rest = list(received)
        assert (crashed.status_code, crashed.json()["error"]["code"]) == (500, "worker_died")
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
        assert (unloadable.status_code, unloadable.json()["error"]["code"]) == (503, "insufficient_memory")
        assert rest[-1] == "[DONE]"
        assert server.chat("x", model="failing").status_code == 200  # only that one step was to fail


def test_a_cold_model_streams_headers_at_once_and_says_how_far_it_is(write_config: WriteConfig) -> None:
    config = write_config("models:\n  cold: {source: 'scripted:?load_ms=2500'}\n")
    with running_server(config) as server:
        started_s = time.monotonic()
        body = stream_body("cold", max_tokens=2)
        with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            headers_s = time.monotonic() - started_s
            lines = list(response.iter_lines())
        assert headers_s < 1
        assert any(line.startswith(": loading model … ") and line.endswith("%") for line in lines)
        assert lines[-2] == "data: [DONE]"


def test_the_least_recently_used_model_makes_room(write_config: WriteConfig) -> None:
    models = "".join(f"  m{number}: {{source: scripted}}\n" for number in range(3))
    config = write_config(f"memory: {{host: 9MiB}}\nmodels:\n{models}")
    with running_server(config, "--eviction-policy", "lru", "--min-residency", "0") as server:

        def states() -> dict[str, str]:
            return {m["id"]: m["status"] for m in server.client.get("/v1/models").json()["data"]}

        for name in ("m0", "m1", "m0", "m2"):
            assert server.chat("x", model=name).status_code == 200
        assert states() == {"m0": "loaded", "m1": "unloaded", "m2": "loaded"}
        assert server.client.post("/models/unload", json={"model": "m0"}).json() == {"success": True}
        assert server.client.post("/models/load", json={"model": "m1"}).json() == {"success": True}
        assert states() == {"m0": "unloaded", "m1": "loaded", "m2": "loaded"}


def test_a_preload_that_fails_ends_the_server_with_its_reason(write_config: WriteConfig) -> None:
    config = write_config("models:\n  bad: {source: 'scripted:?load_error=failed', preload: true}\n")
    server = RunningServer(config)
    try:
        assert server.process.wait(timeout=40) == 1
    finally:
        server.process.kill()
        server.client.close()
    assert "scripted to fail to load" in server.log


def test_a_port_in_use_is_said_in_one_line(slow_server: RunningServer, write_config: WriteConfig) -> None:
    second = RunningServer(
        write_config("models:\n  a: {source: scripted}\n"), "--port", str(slow_server.port)
    )
    try:
        assert second.process.wait(timeout=20) != 0
    finally:
        second.process.kill()
        second.client.close()
    assert "Traceback" not in second.log
    assert f"{slow_server.port}" in second.log
