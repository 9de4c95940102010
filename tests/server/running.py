"""A real server process on a real port, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RunningServer:
    """One `helixflow serve` process, its log and an HTTP client to it."""

    def __init__(
        self, config: Path, *flags: str, port: int | None = None, env: dict[str, str] | None = None
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = config.with_suffix(f".{self.port}.log")
        command = [sys.executable, "-m", "inference_server.cli.main", "serve", "--config", str(config)]
        command += ["--port", str(self.port), *flags]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
            )
        self.client = httpx.Client(base_url=self.url, timeout=120)

    @property
    def log(self) -> str:
        """Everything that the server has written."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, path: str, timeout_s: float = 90) -> None:
        """Return when `path` answers 200; fail with the log if the server ends or is too slow."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            with contextlib.suppress(httpx.TransportError):
                if self.client.get(path).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{path} was not 200 within {timeout_s} s:\n{self.log}")

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        """One non-streaming chat completion with one user message."""
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def children(self) -> list[int]:
        """Live processes that descend from the server or were forked by its fork server."""
        return [pid for pid in _all_processes() if _belongs(pid, self.process.pid)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server process alone."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, then wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not end within 60 s of SIGTERM:\n{self.log}") from None
        finally:
            self.client.close()


@contextlib.contextmanager
def running_server(
    config: Path, *flags: str, ready: str = "/health/ready", **kwargs: Any
) -> Iterator[RunningServer]:
    """A server that is up for the length of a `with` block."""
    server = RunningServer(config, *flags, **kwargs)
    try:
        server.wait_until(ready)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.client.close()


def process_status(pid: int) -> dict[str, str]:
    """Fields of /proc/PID/status; empty if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    status = process_status(pid)
    return bool(status) and not status["State"].startswith(("Z", "X"))


def resident_megabytes(pid: int) -> float:
    """The process's resident set."""
    return int(process_status(pid)["VmRSS"].split()[0]) / 1024


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _belongs(pid: int, ancestor: int) -> bool:
    while pid > 1:
        status = process_status(pid)
        if not status or status["State"].startswith(("Z", "X")):
            return False
        pid = int(status["PPid"])
        if pid == ancestor:
            return True
    return False
