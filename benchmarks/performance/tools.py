"""`ab` and k6 as others wrote them: how each is run against a server, and how its figures are read.

The formats: `ab -e` (https://httpd.apache.org/docs/2.4/programs/ab.html) and k6's `--summary-export`
(https://grafana.com/docs/k6/latest/results-output/end-of-test/).
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inference_server.bench.charts import Point
from inference_server.bench.target import Target

K6_SCRIPT = Path(__file__).parents[1] / "load.k6.js"
TIMEOUT_S = 900
_AB_FIGURES = {
    "Complete requests": "requests completed",
    "Failed requests": "requests failed",
    "Non-2xx responses": "answers that were no success",
    "Requests per second": "requests per second",
}
_AB_LINE = re.compile(rf"^({'|'.join(_AB_FIGURES)}):\s+([\d.]+)", re.MULTILINE)
_AB_LONGEST = re.compile(r"^\s*100%\s+(\d+) \(longest request\)", re.MULTILINE)
_K6_FIGURES = (
    ("http_reqs", "count", "requests"),
    ("http_req_waiting", "med", "first byte p50, ms"),
    ("http_req_waiting", "p(95)", "first byte p95, ms"),
    ("http_req_duration", "med", "whole answer p50, ms"),
    ("http_req_duration", "p(95)", "whole answer p95, ms"),
    ("ms_per_output_token", "med", "per output token p50, ms"),
    ("output_tokens", "rate", "output tokens per second"),
    ("checks", "passes", "checks passed"),
    ("checks", "fails", "checks failed"),
)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool measured. `shares`: (milliseconds, per cent of the requests that took no longer)."""

    name: str
    command: str
    figures: Mapping[str, float]
    num_failed: int
    shares: Sequence[Point] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbLoad:
    """Requests for `ab`: all for `path`, with a JSON `body` or none."""

    path: str
    num_requests: int
    concurrency: int
    body: Mapping[str, object] = field(default_factory=dict)


def run_ab(target: Target, load: AbLoad) -> ToolResult | None:
    """What `ab` measures; None where it is not installed."""
    program = shutil.which("ab")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="helixflow-ab-") as folder:
        table = Path(folder) / "percent.csv"
        flags = ["-l", "-s", str(TIMEOUT_S), "-e", str(table)]
        flags += ["-n", str(load.num_requests), "-c", str(load.concurrency)]
        shown = ["ab", "-n", str(load.num_requests), "-c", str(load.concurrency)]
        if load.body:
            body = Path(folder) / "body.json"
            body.write_text(json.dumps(load.body), encoding="utf-8")
            flags += ["-p", str(body), "-T", "application/json"]
        if target.api_key:
            flags += ["-H", f"Authorization: Bearer {target.api_key}"]
        url = f"{target.base_url}{load.path}"
        done = _run([program, *flags, url], {})
        name, command = f"ab: {load.path}", " ".join([*shown, url])
        if done.returncode:
            return ToolResult(name, command, {}, load.num_requests, error=_last_line(done))
        return read_ab(name, command, done.stdout, table.read_text(encoding="utf-8"))


def read_ab(name: str, command: str, report: str, table: str) -> ToolResult:
    """From what `ab` prints and from the file that `-e` names."""
    found = {name: float(value) for name, value in _AB_LINE.findall(report)}
    figures = {title: found[line] for line, title in _AB_FIGURES.items() if line in found}
    longest = _AB_LONGEST.search(report)
    limit_ms = float(longest[1]) + 1 if longest else 0.0  # of few requests, it makes rows up
    rows = [(float(ms), float(share)) for share, ms in list(csv.reader(table.splitlines()))[1:]]
    shares = [row for row in rows if row[0] <= limit_ms]
    figures |= {f"p{rank}, ms": ms for ms, share in shares for rank in (50, 95, 99) if share == rank}
    num_failed = found.get("Failed requests", 0) + found.get("Non-2xx responses", 0)
    return ToolResult(name, command, figures, int(num_failed), shares)


def run_k6(target: Target, *, streams: int, duration_s: int, max_tokens: int) -> ToolResult | None:
    """What k6 measures with `benchmarks/load.k6.js`; None where it is not installed."""
    program = shutil.which("k6")
    if program is None:
        return None
    settings = {
        "BASE_URL": target.base_url,
        "MODEL": target.model,
        "STREAMS": str(streams),
        "DURATION": f"{duration_s}s",
        "MAX_TOKENS": str(max_tokens),
    }
    command = " ".join(
        ["k6 run", *(f"-e {name}={value}" for name, value in settings.items()), K6_SCRIPT.name]
    )
    secret = {"API_KEY": target.api_key} if target.api_key else {}
    with tempfile.TemporaryDirectory(prefix="helixflow-k6-") as folder:
        summary = Path(folder) / "summary.json"
        done = _run(
            [program, "run", "--quiet", "--summary-export", str(summary), str(K6_SCRIPT)], settings | secret
        )
        if not summary.exists():  # a threshold that was missed is no zero either
            return ToolResult("k6", command, {}, 1, error=_last_line(done))
        return read_k6(command, summary.read_text(encoding="utf-8"))


def read_k6(command: str, summary: str) -> ToolResult:
    """From the file that `--summary-export` names."""
    metrics = json.loads(summary)["metrics"]
    figures = {
        title: float(metrics[metric][value])
        for metric, value, title in _K6_FIGURES
        if value in metrics.get(metric, {})
    }
    return ToolResult("k6", command, figures, int(figures.get("checks failed", 0)))


def _run(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f"status {done.returncode}: {lines[-1] if lines else 'it said nothing'}"
