"""A server process of our own: started, watched until it answers, ended. It knows no server's flags but ours.

Other servers are started through it too, so that all are timed and ended in the same way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import httpx

from inference_server.errors import Unavailable

_POLL_S = 0.02
_STOP_TIMEOUT_S = 60.0
_TAIL_BYTES = 2000


class Launch(Protocol):
    """What it takes to start a server: read only."""

    @property
    def command(self) -> Sequence[str]:
        """Program and arguments."""

    @property
    def env(self) -> Mapping[str, str]:
        """Variables beside those of this process."""

    @property
    def base_url(self) -> str:
        """Where it will answer."""


class ServerProcess:
    """Owns one process with its children (a session of its own) and the file with its output."""

    def __init__(self, launch: Launch, log: Path) -> None:
        self._log = log
        self.base_url = launch.base_url
        self.start_s = time.perf_counter()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                list(launch.command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **launch.env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process, which also leads its group."""
        return self._process.pid

    def wait_until(self, path: str, timeout_s: float) -> float:
        """Wait for a 200 at `path`; returns the seconds since the start.

        Raises:
            Unavailable: the process ended or took too long; the message ends with its last output.
        """
        with httpx.Client(base_url=self.base_url, timeout=5.0) as http:
            while (elapsed_s := time.perf_counter() - self.start_s) < timeout_s:
                if self._process.poll() is not None:
                    raise Unavailable(
                        f"the server ended with status {self._process.returncode}:\n{self.tail}"
                    )
                with contextlib.suppress(httpx.HTTPError):
                    if http.get(path).status_code == 200:
                        return time.perf_counter() - self.start_s
                time.sleep(_POLL_S)
        raise Unavailable(f"{path} did not answer with 200 within {elapsed_s:.0f} s:\n{self.tail}")

    @property
    def tail(self) -> str:
        """The end of what the server has written."""
        return self._log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """SIGTERM; then, for whatever of its group is left, SIGKILL."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running(launch: Launch, log: Path) -> Iterator[ServerProcess]:
    """The server for as long as the context lasts."""
    server = ServerProcess(launch, log)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port on loopback that nothing listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def helixflow_command(port: int, flags: Sequence[str]) -> tuple[str, ...]:
    """`helixflow serve` of this very installation, on loopback."""
    program = (sys.executable, "-m", "inference_server.cli.main", "serve")
    return (*program, *flags, "--host", "127.0.0.1", "--port", str(port))
