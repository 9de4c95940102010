"""A small OpenAI-like server on a thread: answers are scripted, requests are remembered."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = [
    {
        "id": "cold",
        "status": "unloaded",
        "parent": None,
        "max_model_len": 64,
        "device": None,
        "memory_bytes": 0,
    },
    {
        "id": "warm",
        "status": "loaded",
        "parent": None,
        "max_model_len": 4096,
        "device": "cpu",
        "memory_bytes": 2**30,
    },
    {"id": "gpt", "status": "loaded", "parent": "warm", "max_model_len": 4096},
]


LIVES = [
    {
        "id": "warm",
        "status": "loaded",
        "aliases": ["gpt"],
        "device": "cpu",
        "memory_bytes": 2**30,
        "num_leases": 0,
        "num_queued": 0,
        "last_used_s": 125.0,
        "expires_in_s": 475.0,
        "progress": None,
        "failure": None,
        "retry_in_s": None,
    },
    {
        "id": "busy",
        "status": "loaded",
        "device": "cuda:0",
        "memory_bytes": 3 * 2**29,
        "num_leases": 3,
        "num_queued": 2,
        "last_used_s": None,
        "expires_in_s": None,
    },
    {"id": "coming", "status": "loading", "progress": {"stage": "load", "fraction": 0.43}, "num_queued": 1},
    {"id": "broken", "status": "failed", "failure": "no such file", "retry_in_s": 9.5},
    {"id": "napping", "status": "sleeping", "device": "cpu", "memory_bytes": 2**28, "last_used_s": 7200.0},
    {"id": "cold", "status": "unloaded", "memory_bytes": 0},
]
MEMORY = [{"device": "cpu", "budget_bytes": 8 * 2**30, "reserved_bytes": 5 * 2**28}]


def text(content: str, reason: str | None = None) -> str:
    """One chunk of an answer."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": reason}
    return "data: " + json.dumps({"choices": [choice]}) + "\n\n"


DONE = "data: [DONE]\n\n"
ROLE = 'data: {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}\n\n'
USAGE = 'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
HELLO = (ROLE, text("Hel"), text("lo."), text("", "stop"), USAGE, DONE)


class ScriptedServer(ThreadingHTTPServer):
    """Answers each chat with the next script: SSE pieces (a callable runs in between), or (status, body)."""

    daemon_threads = True

    def __init__(self, answers: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.api_key: str | None = None
        self.left = threading.Event()  # set when a client left in the middle of an answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""

    def do_GET(self) -> None:
        if not self._admitted():
            return
        if self.path == "/models":
            self._reply(200, {"object": "list", "data": LIVES, "memory": MEMORY})
        else:
            self._reply(200, {"object": "list", "data": MODELS})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._admitted():
            return
        self.server.requests.append(json.loads(body))
        self.server.paths.append(self.path)
        answer = self.server.answers.pop(0)
        if isinstance(answer, tuple) and isinstance(answer[0], int):
            self._reply(answer[0], answer[1])
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for piece in answer:
                self._send(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.server.left.set()

    def _send(self, piece: str | Callable[[], object]) -> None:
        if callable(piece):
            piece()
        else:
            self.wfile.write(piece.encode())
            self.wfile.flush()

    def _admitted(self) -> bool:
        self.server.headers.append(dict(self.headers))
        key = self.server.api_key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._reply(401, {"error": {"message": "no", "code": "invalid_api_key"}})
        return False

    def _reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(*answers: Any) -> Iterator[ScriptedServer]:
    """A server with these answers, for the time of a test."""
    server = ScriptedServer(list(answers))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
