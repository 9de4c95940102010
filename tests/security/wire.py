"""HTTP by hand, over a bare socket: what no client library would send."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """Of the envelope, which has to be there, with its code in a header too."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["x-helixflow-error"] == error["code"]
        return error


class Wire:
    """One connection."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:  # before the handshake, which tells the peer of it
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(("127.0.0.1", port))
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes, *, piece: int | None = None, pause_s: float = 0.0) -> None:
        """All of it, in pieces of so many bytes."""
        for start in range(0, len(data), piece or max(len(data), 1)):
            self.socket.sendall(data[start : start + piece] if piece else data)
            time.sleep(pause_s)

    def answer(self, method: str = "POST") -> Answer:
        """The next response on this connection."""
        response = http.client.HTTPResponse(_Shared(self._file), method=method)  # type: ignore[arg-type]
        response.begin()
        return Answer(response.status, response.headers, response.read())

    def is_closed(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether the server ends this connection within that time; what it still sends is left aside."""
        self.socket.settimeout(timeout_s)
        try:
            while self._file.read1(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self.socket.close()


class _Shared:
    """The socket as `http.client` wants it; several responses are read from its one buffer."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def makefile(self, mode: str) -> Any:
        """Of the one file; its end of life is not that of a response."""
        assert mode == "rb"
        return _Unclosed(self._file)


class _Unclosed:
    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        """Not yet."""

    def flush(self) -> None:
        """Nothing is written here."""


@contextlib.contextmanager
def wire(port: int, *, receive_buffer: int | None = None) -> Iterator[Wire]:
    """A connection for the length of a `with` block."""
    connection = Wire(port, receive_buffer=receive_buffer)
    try:
        yield connection
    finally:
        connection.close()


def request(
    body: bytes | dict[str, Any] = b"",
    *,
    method: str = "POST",
    target: str = "/v1/chat/completions",
    headers: tuple[str, ...] = (),
    has_length: bool = True,
) -> bytes:
    """A whole request with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    if has_length:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a small, right request."""
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}
