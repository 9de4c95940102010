"""A real Prometheus on a port of its own, with the chart's rules, scraping every second."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.dashboards.promql import RULES
from tests.fetched_tools import prometheus_program
from tests.server.running import free_port

JOB = "helixflow"
_INTERVAL = re.compile(r"^( +interval:) .*$", re.MULTILINE)


class RunningPrometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of an answer."""
        response = self._client.get(path, params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        with contextlib.suppress(httpx.TransportError):
            return self._client.get("/-/ready").status_code == 200
        return False

    def finite_values(self, expr: str, seconds: float) -> list[float]:
        """All values of all series over the last seconds, as a panel would draw them."""
        now_s = time.time()
        found = self.get("/api/v1/query_range", query=expr, start=now_s - seconds, end=now_s, step=1)
        values = [float(value) for series in found["result"] for _, value in series["values"]]
        return [value for value in values if math.isfinite(value)]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


@contextlib.contextmanager
def running_prometheus(folder: Path, targets: Sequence[str]) -> Iterator[RunningPrometheus]:
    """One that scrapes `targets` (host:port)."""
    port = free_port()
    log = folder / "prometheus.log"
    command = [str(prometheus_program("prometheus")), f"--config.file={_configuration(folder, targets)}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--log.level=warn"], stdout=out, stderr=subprocess.STDOUT)
    prometheus = RunningPrometheus(f"http://127.0.0.1:{port}")
    try:
        deadline_s = time.monotonic() + 30
        while not prometheus.is_ready():
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline_s, log.read_text("utf-8")
            time.sleep(0.05)
        yield prometheus
    finally:
        prometheus.close()
        process.kill()
        process.wait()


def _configuration(folder: Path, targets: Sequence[str]) -> Path:
    """The chart's rules as they are, but for how often they are reckoned."""
    rules = []
    for file in RULES:
        rules.append(folder / file.name)
        rules[-1].write_text(_INTERVAL.sub(r"\1 1s", file.read_text("utf-8")), encoding="utf-8")
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(file) for file in rules],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return path
