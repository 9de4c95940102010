"""Each fault hits one model only: the other one streams on, the hit one answers again, the budget is exact.

A real server with two scripted models under a budget for exactly two.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference_server.model_manager.workspace import SCRIPTED_CONTEXT_BYTES
from tests.server.running import RunningServer, process_status, running_server

HANG_TIMEOUT_S = LOAD_TIMEOUT_S = 2

Place = tuple[RunningServer, Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The server, and the file that says how the next load of `hit` goes wrong."""
    folder = tmp_path_factory.mktemp("isolation")
    fault_file, config = folder / "fault", folder / "models.yaml"
    config.write_text(
        f"memory: {{host: {2 * SCRIPTED_CONTEXT_BYTES}}}\n"
        "models:\n"
        "  good: {source: 'scripted:?output_tokens=100000&step_ms=20', preload: true}\n"
        f"  hit: {{source: 'scripted:?prompt_faults=1&step_ms=1&load_fault_file={fault_file}'}}\n"
    )
    limits = ("--hang-timeout", f"{HANG_TIMEOUT_S}s", "--load-timeout", f"{LOAD_TIMEOUT_S}s")
    with running_server(config, *limits) as server:
        yield server, fault_file


class Bystander:
    """A stream from the other model that runs meanwhile, in a thread of its own."""

    def __init__(self, server: RunningServer) -> None:
        self._url = server.url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.num_texts = 0
        self.problem: object = None

    def start(self) -> None:
        self._thread.start()
        self.go_on()

    def go_on(self) -> None:
        """Return when more texts have come, or none can."""
        num_before = self.num_texts
        while self.num_texts < num_before + 2 and self._thread.is_alive():
            time.sleep(0.01)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(10)

    def _read(self) -> None:
        message = {"role": "user", "content": "go on"}
        body = {"model": "good", "messages": [message], "stream": True, "ignore_eos": True}
        try:
            with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=body, timeout=30) as answer:
                for line in answer.iter_lines():
                    if self._ended.is_set():
                        return
                    if line.startswith("data: "):
                        self._take(line.removeprefix("data: "))
            self.problem = self.problem or "the stream ended"
        except httpx.HTTPError as error:
            self.problem = error

    def _take(self, data: str) -> None:
        self.num_texts += 1
        if data == "[DONE]" or "error" in json.loads(data):
            self.problem = data


@contextlib.contextmanager
def undisturbed(server: RunningServer) -> Iterator[Bystander]:
    """The other model streams through the whole block and beyond, and takes a new request after it."""
    bystander = Bystander(server)
    bystander.start()
    try:
        yield bystander
        bystander.go_on()
    finally:
        bystander.stop()
    assert bystander.problem is None
    assert server.chat("and you?", model="good", max_tokens=2).status_code == 200


def reserved_bytes(server: RunningServer) -> dict[str, int]:
    return {m["id"]: m["memory_bytes"] for m in server.client.get("/models").json()["data"]}


def leases(server: RunningServer) -> int:
    return sum(model["num_leases"] for model in server.client.get("/models").json()["data"])


def workers(server: RunningServer) -> set[int]:
    """Children of the fork server, which is the server's."""
    return {pid for pid in server.children() if int(process_status(pid)["PPid"]) != server.process.pid}


def load(server: RunningServer, model: str) -> set[int]:
    """Load by request, which no cooldown refuses; the processes of all workers."""
    assert server.client.post("/models/load", json={"model": model}).status_code == 200
    return workers(server)


def assert_whole_again(server: RunningServer) -> None:
    """Both models answer, and nothing but them holds memory, a lease or a process."""
    assert server.chat("again", model="hit", max_tokens=3).json()["usage"]["completion_tokens"] == 3
    assert reserved_bytes(server) == {"good": SCRIPTED_CONTEXT_BYTES, "hit": SCRIPTED_CONTEXT_BYTES}
    assert len(workers(server)) == 2
    assert server.client.post("/models/unload", json={"model": "hit"}).status_code == 200
    assert reserved_bytes(server) == {"good": SCRIPTED_CONTEXT_BYTES, "hit": 0}
    assert len(workers(server)) == 1
    assert leases(server) == 0


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (response.status_code == 503) == ("retry-after" in response.headers)
    return response.status_code, error["type"], error["code"]


MEMORY = (503, "server_error", "insufficient_memory")
BUG = (500, "server_error", "internal_error")
DEATH = (500, "server_error", "worker_died")
LOAD = (503, "server_error", "model_load_failed")


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [("oom", MEMORY), ("error", BUG), ("segfault", DEATH), ("kill", DEATH), ("hang", DEATH)],
)
def test_a_fault_in_a_request_hits_its_model_alone(
    place: Place, fault: str, stage: str, expected: tuple[int, str, str]
) -> None:
    server, _ = place
    before = load(server, "hit")
    with undisturbed(server) as bystander:
        num_before = bystander.num_texts
        answer = server.chat(f"fault:{fault}:{stage}", model="hit", max_tokens=9)
        assert error_of(answer) == expected
        assert fault != "hang" or bystander.num_texts > num_before + 10  # it went on during those seconds
        assert server.chat("still there?", model="hit", max_tokens=1).status_code == 200
    assert (workers(server) == before) is (fault in ("oom", "error"))  # these cost no process
    assert_whole_again(server)


@pytest.mark.parametrize("fault", ["oom", "kill"])
def test_a_stream_that_a_fault_cuts_off_ends_with_an_error_event(place: Place, fault: str) -> None:
    server, _ = place
    load(server, "hit")
    body: dict[str, Any] = {"model": "hit", "stream": True, "max_tokens": 9}
    body["messages"] = [{"role": "user", "content": f"fault:{fault}:decode"}]
    with undisturbed(server):
        text = server.client.post("/v1/chat/completions", json=body).text
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        texts = [json.loads(event).get("choices") for event in events[:-1]]
    assert sum(bool(choices and choices[0]["delta"].get("content")) for choices in texts) == 2
    code = {"oom": "insufficient_memory", "kill": "worker_died"}[fault]
    assert json.loads(events[-1])["error"]["code"] == code
    assert_whole_again(server)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("oom", MEMORY), ("error", LOAD), ("segfault", LOAD), ("kill", LOAD), ("hang", LOAD)],
)
def test_a_fault_in_a_load_hits_its_model_alone(
    place: Place, fault: str, expected: tuple[int, str, str]
) -> None:
    server, fault_file = place
    fault_file.write_text(fault)
    try:
        with undisturbed(server) as bystander:
            num_before = bystander.num_texts
            assert error_of(server.chat("hello", model="hit", max_tokens=3)) == expected
            assert fault != "hang" or bystander.num_texts > num_before + 10
            assert reserved_bytes(server)["hit"] == 0
            assert len(workers(server)) == 1
    finally:
        fault_file.unlink()
    load(server, "hit")
    assert_whole_again(server)


def test_a_worker_that_gives_no_sign_of_life_is_killed_and_replaced(place: Place) -> None:
    server, _ = place
    alone = workers(server)
    (silent,) = load(server, "hit") - alone
    with undisturbed(server) as bystander:
        num_before = bystander.num_texts
        os.kill(silent, signal.SIGSTOP)
        assert error_of(server.chat("hello?", model="hit", max_tokens=3)) == DEATH
        assert bystander.num_texts > num_before + 10
        assert server.chat("hello?", model="hit", max_tokens=3).status_code == 200
    assert silent not in workers(server)
    assert_whole_again(server)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "segfault"])
def test_a_worker_that_dies_in_its_sleep_is_loaded_anew(place: Place, number: signal.Signals) -> None:
    server, _ = place
    alone = workers(server)
    (sleeper,) = load(server, "hit") - alone
    assert server.client.post("/models/sleep", json={"model": "hit"}).status_code == 200
    with undisturbed(server):
        os.kill(sleeper, number)
        assert server.chat("awake?", model="hit", max_tokens=3).status_code == 200
    assert sleeper not in workers(server)
    assert_whole_again(server)
