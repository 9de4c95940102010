"""A server that has lived a little: every kind of thing that metrics count has happened to its models once.

Scripted models, three of which share the room of two.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.server.running import RunningServer, running_server

TALKERS = ("one", "two", "three")
MODELS = (*TALKERS, "broken", "embedder")
CONFIG = """
memory: {host: 9MiB}
models:
  one: {source: 'scripted:?output_tokens=24&step_ms=2&prompt_faults=1', aliases: [first], preload: true}
  two: {source: 'scripted:?output_tokens=24&step_ms=2&load_ms=50'}
  three: {source: 'scripted:?output_tokens=24&step_ms=2&load_ms=50'}
  broken: {source: 'scripted:?load_error=failed'}
  embedder: {source: 'scripted:', task: embed}
"""
CANCELLED = r'helixflow_requests_total{{model="{model}",outcome="cancelled"}} [1-9]'
FLAGS = ("--min-residency", "0", "--max-num-seqs", "4", "--max-num-queued-reqs", "1")


@contextlib.contextmanager
def used_server(folder: Path) -> Iterator[RunningServer]:
    """Such a server, after the load."""
    config = folder / "models.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with running_server(config, *FLAGS) as server:
        use(server)
        yield server


def use(server: RunningServer) -> None:
    """A second or two of everything."""
    for model in (*TALKERS, "one", "two"):
        assert server.chat("hello", model=model).status_code == 200
    assert server.client.post("/v1/embeddings", json={"model": "embedder", "input": "x"}).status_code == 200
    assert server.chat("hello", model="broken").status_code == 503
    assert server.chat("fault:error:decode", model="one").status_code == 500
    break_a_stream(server, "one")
    assert server.chat("hello", model="never-heard-of").status_code == 404
    sleep_and_wake(server, "one")
    leave_early(server, "one")
    assert server.client.get("/metrics/epp").status_code == 200


def break_a_stream(server: RunningServer, model: str) -> None:
    """It begins well, with a status of 200."""
    broken = server.chat("fault:error:decode", model=model, stream=True)
    assert broken.status_code == 200
    assert "internal_error" in broken.text


def sleep_and_wake(server: RunningServer, model: str) -> None:
    """Its worker stays, and a request wakes it."""
    assert server.client.post("/models/sleep", json={"model": model}).status_code == 200
    assert server.chat("hello", model=model).status_code == 200


def leave_early(server: RunningServer, model: str) -> None:
    """A client that goes while it is answered; beside that is no room for as many as could come alone."""
    body = {"model": model, "stream": True, "ignore_eos": True, "max_tokens": 1000}
    body["messages"] = [{"role": "user", "content": "hello"}]
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=30) as response:
        lines = response.iter_lines()  # its end would end the response
        next(lines)
        assert server.chat("hello", model=model, n=5).status_code == 429
    deadline_s = time.monotonic() + 10
    while re.search(CANCELLED.format(model=model), server.client.get("/metrics").text) is None:
        assert time.monotonic() < deadline_s, "the client left, and nobody noticed"
        time.sleep(0.02)
