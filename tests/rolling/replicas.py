"""Replicas of one server: real processes on fixed ports, which can be restarted in place."""

from __future__ import annotations

import time
from pathlib import Path

from tests.server.running import RunningServer, free_port

FLAGS = ("--shutdown-grace", "1s", "--shutdown-timeout", "10s")


class Replica:
    """One replica. Its port outlives its process."""

    def __init__(self, folder: Path, models: str) -> None:
        self.port = free_port()
        self._config = folder / f"models.{self.port}.yaml"
        self._config.write_text(models, encoding="utf-8")
        self.server = self._started()

    def wait_until_ready(self) -> None:
        """Returns when /readyz answers 200."""
        self.server.wait_until("/readyz")

    def restart(self) -> float:
        """SIGTERM, wait for the end, start anew, wait until ready; returns how long the end took, in s."""
        told_s = time.monotonic()
        assert self.server.stop() == 0, self.server.log
        took_s = time.monotonic() - told_s
        self.start()
        self.wait_until_ready()
        return took_s

    def start(self) -> None:
        """Anew, after its end."""
        self.server = self._started()

    def num_served(self) -> int:
        """Requests that ended well since its start."""
        lines = self.server.client.get("/metrics").text.splitlines()
        served = [line for line in lines if line.startswith("vllm:request_success_total{")]
        return int(sum(float(line.rpartition(" ")[2]) for line in served))

    def kill(self) -> None:
        """Its port refuses connections."""
        self.server.process.kill()
        self.server.process.wait()
        self.server.client.close()

    def _started(self) -> RunningServer:
        return RunningServer(self._config, *FLAGS, port=self.port)
