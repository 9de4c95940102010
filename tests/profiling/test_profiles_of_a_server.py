"""Profiles of models that a real server runs, while they answer."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference_server.profiling.hotspots import hotspots
from tests.server.running import RunningServer, running_server

CONFIG = """
models:
  org/tiny: {source: 'scripted:?step_ms=2', aliases: [tiny], preload: true, max_model_len: 4096}
  other: {source: scripted}
"""


def may_trace() -> bool:
    """Whether one process may look at another that is not its child."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return os.geteuid() == 0 or not scope.exists() or scope.read_text().strip() == "0"


needs_tracing = pytest.mark.skipif(not may_trace(), reason="this kernel lets py-spy look at nobody's process")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    config = tmp_path_factory.mktemp("profiled") / "models.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with running_server(config) as running:
        yield running


def profile(server: RunningServer, **body: Any) -> httpx.Response:
    return server.client.post("/models/profile", json={"seconds": 1, **body})


def ask_for_profile(server: RunningServer, *, seconds: float, timeout_s: float = 30) -> httpx.Response:
    """Of the busy model, by a client of its own."""
    body = {"model": "tiny", "kind": "py-spy", "seconds": seconds}
    return httpx.post(f"{server.url}/models/profile", json=body, timeout=timeout_s)


def complete(server: RunningServer, model: str) -> int:
    """The number of tokens of an answer, by a client of its own."""
    body = {"model": model, "prompt": "Once", "max_tokens": 100, "ignore_eos": True}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    return int(response.raise_for_status().json()["usage"]["completion_tokens"])


@contextmanager
def kept_busy(server: RunningServer, model: str) -> Iterator[list[int]]:
    """Requests one after the other for the length of a `with` block; the tokens of each."""
    answered: list[int] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answered.append(complete(server, model))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answered
    finally:
        is_over.set()
        thread.join()


def cli(server: RunningServer, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inference_server.cli.main", "profile", "--base-url", server.url, *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@needs_tracing
def test_py_spy_sees_a_worker_at_work_and_requests_go_on(server: RunningServer) -> None:
    with kept_busy(server, "tiny") as answered:
        response = profile(server, model="tiny", kind="py-spy")
    assert response.status_code == 200, response.text
    assert 'filename="org-tiny-py-spy.speedscope.json"' in response.headers["content-disposition"]
    assert response.json()["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert response.json()["profiles"]
    assert hotspots(response.content)  # it mostly waits: a few samples are all there may be
    assert set(answered) == {100}
    assert len(answered) >= 2


@needs_tracing
def test_one_profile_is_taken_at_a_time_and_one_that_nobody_waits_for_ends(server: RunningServer) -> None:
    with kept_busy(server, "tiny"):
        with pytest.raises(httpx.ReadTimeout):
            ask_for_profile(server, seconds=60, timeout_s=0.5)
        while ask_for_profile(server, seconds=1).status_code == 409:
            pass  # until the server has seen that nobody waits for the first one
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: ask_for_profile(server, seconds=1), range(2)))
    taken, refused = sorted(both, key=lambda response: response.status_code)
    assert (taken.status_code, refused.status_code) == (200, 409)
    assert refused.json()["error"]["code"] == "conflict"


def test_what_cannot_be_profiled_is_refused_with_the_reason(server: RunningServer) -> None:
    for status, body, words in (
        (404, {"model": "nobody"}, "nobody"),
        (409, {"model": "other"}, "load it first"),
        (400, {"model": "tiny", "kind": "torch"}, "take py-spy"),
        (400, {"model": "tiny", "kind": "perf"}, "kind"),
        (400, {"model": "tiny", "seconds": 61}, "seconds"),
        (400, {"model": "tiny", "seconds": 0}, "seconds"),
    ):
        refused = profile(server, **body)
        assert (refused.status_code, words in refused.text) == (status, True), refused.text


@needs_tracing
def test_the_command_writes_the_file_and_prints_where_the_time_went(
    server: RunningServer, tmp_path: Path
) -> None:
    with kept_busy(server, "tiny"):
        done = cli(server, tmp_path, "--kind", "py-spy", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    first, *rows, last = done.stdout.splitlines()
    assert first.split() == ["self", "s", "share", "count", "name"]
    assert 1 <= len(rows) <= 10
    assert last == "profile.speedscope.json opens in https://www.speedscope.app"
    assert hotspots((tmp_path / "profile.speedscope.json").read_bytes())
    failed = cli(server, tmp_path, "other", "-o", "other.json")
    assert (failed.returncode, "load it first" in failed.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["profile.speedscope.json"]
    wrong = cli(server, tmp_path, "--seconds", "0")
    assert (wrong.returncode, "above 0" in wrong.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.model
def test_a_torch_profile_of_a_model_names_the_parts_of_its_steps(
    demo_server: RunningServer, tmp_path: Path
) -> None:
    with kept_busy(demo_server, "gpt-3.5-turbo") as answered:
        response = profile(demo_server, model="gpt-3.5-turbo", seconds=2)
        done = cli(demo_server, tmp_path, "gpt-3.5-turbo", "--seconds", "1")
    assert response.status_code == 200, response.text
    events = json.loads(gzip.decompress(response.content))["traceEvents"]
    ranges = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert {"step", "schedule", "launch", "commit"} <= ranges
    found = hotspots(response.content)
    assert sum(spot.self_s for spot in found) > 0.5
    assert set(answered) == {100}
    assert done.returncode == 0, done.stderr
    assert "https://ui.perfetto.dev" in done.stdout
    assert "profiler_st" not in demo_server.log, "torch's own words are no log lines"
