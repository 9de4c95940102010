"""Clients that ask all the time, in threads, and note every answer that is not as it should be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

NUM_TOKENS = 6
PAUSE_S = 0.03


@dataclass
class Load:
    """What became of the requests. Each client writes from its own thread."""

    url: str
    body: dict[str, object]
    num_answers: int = 0
    num_streams: int = 0
    failures: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def ask(self, client: httpx.Client) -> None:
        """One request whose answer comes as a whole."""
        response = client.post("/v1/chat/completions", json=self.body)
        if response.status_code != 200 or response.json()["usage"]["completion_tokens"] != NUM_TOKENS:
            self.failures.append(f"{response.status_code} {response.headers} {response.text[:300]}")
        self.num_answers += 1

    def stream(self, client: httpx.Client) -> None:
        """One stream, read to its end."""
        with client.stream("POST", "/v1/chat/completions", json={**self.body, "stream": True}) as response:
            data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        if response.status_code != 200 or data[-1] != "[DONE]":
            self.failures.append(f"stream: {response.status_code} {data[-1:]}")
        elif not any(json.loads(event)["choices"][0]["finish_reason"] for event in data[:-1]):
            self.failures.append(f"stream without an end: {data[-2:]}")
        self.num_streams += 1

    def run(self, once: Callable[[httpx.Client], None]) -> None:
        """Until stopped. An exception is a failure of its request."""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stopped.wait(PAUSE_S):
                try:
                    once(client)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))


@contextmanager
def load(url: str, *, model: str = "talker", num_askers: int = 2, num_streamers: int = 1) -> Iterator[Load]:
    """Clients that ask for the length of the block, and end before it does."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
    }
    clients = Load(url, body)
    work = [clients.ask] * num_askers + [clients.stream] * num_streamers
    threads = [threading.Thread(target=clients.run, args=(once,)) for once in work]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        clients.stopped.set()
        for thread in threads:
            thread.join()
