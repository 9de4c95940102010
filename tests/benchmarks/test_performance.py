"""`scripts/run-performance-test.sh`: what it measures, what it leaves, what it says if something is amiss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.performance.tools import read_ab, read_k6
from inference_server.bench.charts import label
from tests.server.running import RunningServer, running_server

SCRIPT = Path(__file__).parents[2] / "scripts" / "run-performance-test.sh"
QUICK = ["--levels", "1", "2", "--requests-per-stream", "2", "--output-len", "8"]
QUICK += ["--ab-requests", "40", "--k6-seconds", "1"]
AB_REPORT = """
Server Hostname:        127.0.0.1
Concurrency Level:      16
Complete requests:      16
Failed requests:        2
Non-2xx responses:      1
Requests per second:    96.93 [#/sec] (mean)

Percentage of the requests served within a certain time (ms)
  50%    104
 100%    116 (longest request)
"""
AB_TABLE = "Percentage served,Time in ms\n0,101.500\n50,104.195\n95,116.056\n99,8387229111175570.000\n"
K6_SUMMARY = {
    "metrics": {
        "http_reqs": {"count": 40, "rate": 8.0},
        "http_req_waiting": {"avg": 3.0, "med": 2.5, "p(90)": 4.0, "p(95)": 4.5},
        "output_tokens": {"count": 320, "rate": 64.0},
        "checks": {"passes": 117, "fails": 3, "value": 0.975},
    }
}
# Stands in for k6 where there is none: writes what it was given into a summary of k6's form.
K6_STAND_IN = f"""#!{sys.executable}
import json, os, sys
assert sys.argv[1] == "run" and sys.argv[-1].endswith("load.k6.js"), sys.argv
assert os.environ["API_KEY"] not in " ".join(sys.argv)
summary = {K6_SUMMARY!r}
summary["metrics"]["http_reqs"]["count"] = int(os.environ["STREAMS"])
with open(sys.argv[sys.argv.index("--summary-export") + 1], "w") as file:
    json.dump(summary, file)
"""


def report(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """One run of the script, which finds our interpreter and what `variables` say."""
    return subprocess.run(
        [str(SCRIPT), "--output", str(folder / "report"), *QUICK, *flags],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def configured(folder: Path) -> Path:
    config = folder / "models.yaml"
    config.write_text("models: {tiny: {source: 'scripted', preload: true}}", encoding="utf-8")
    return config


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that wants a key."""
    with running_server(configured(tmp_path), "--api-key", "secret-key-of-the-test") as server:
        yield server


def test_a_run_against_a_server_of_its_own_leaves_figures_and_plots(tmp_path: Path) -> None:
    done = report(tmp_path, "--config", str(configured(tmp_path)))
    assert (done.returncode, "0 requests failed" in done.stdout) == (0, True), done.stderr
    result = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert [level["max_concurrency"] for level in result["levels"]] == [1, 2]
    assert all(level["output_throughput"] > 0 for level in result["levels"])
    assert result["load"]["completed"] == 4
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<polyline") >= 5
    assert "no values" not in page
    shown = label(result["load"]["output_throughput"])
    assert f"<td>output tokens per second</td><td>{shown}</td>" in page
    installed = {name: shutil.which(name) is not None for name in ("ab", "k6")}
    assert result["missing"] == [name for name, there in installed.items() if not there]
    for tool in result["tools"]:
        assert tool["name"] in page
        assert tool["error"] is None
    if installed["ab"]:
        health, completions = (tool for tool in result["tools"] if tool["name"].startswith("ab"))
        assert (health["requests completed"], completions["requests completed"]) == (40, 16)
        assert health["p50, ms"] > 0


def test_tools_are_given_the_key_and_what_they_say_is_reported(tmp_path: Path, keyed: RunningServer) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "k6").write_text(K6_STAND_IN)
    (tools / "k6").chmod(0o755)
    variables = {"PATH": f"{tools}:{os.environ['PATH']}", "HELIXFLOW_API_KEY": "secret-key-of-the-test"}
    done = report(tmp_path, "--base-url", f"{keyed.url}/v1/", **variables)
    assert done.returncode == 1, "k6's checks that failed are failures"
    result = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    by_name = {tool["name"]: tool for tool in result["tools"]}
    assert (by_name["k6"]["requests"], by_name["k6"]["checks failed"]) == (2, 3)
    assert result["failed"] == 3
    assert "secret-key-of-the-test" not in json.dumps(result)
    assert "secret-key-of-the-test" not in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_a_server_that_refuses_or_is_not_there_is_said_and_nothing_is_left(
    tmp_path: Path, keyed: RunningServer
) -> None:
    refused = report(tmp_path, "--base-url", keyed.url, HELIXFLOW_API_KEY="wrong")
    assert (refused.returncode, "valid API key" in refused.stderr) == (2, True)
    nowhere = report(tmp_path, "--base-url", "127.0.0.1:9")
    assert (nowhere.returncode, "expected an address" in nowhere.stderr) == (2, True)
    python = report(tmp_path, PYTHON="/no/such/python")
    assert (python.returncode, "make install" in python.stderr) == (2, True)
    assert not (tmp_path / "report").exists()


def test_abs_figures_are_read_and_what_is_beyond_its_longest_request_is_left_out() -> None:
    result = read_ab("ab: /x", "ab -n 16", AB_REPORT, AB_TABLE)
    assert result.num_failed == 3
    assert result.shares == [(101.5, 0), (104.195, 50), (116.056, 95)]
    assert result.figures == {
        "requests completed": 16,
        "requests failed": 2,
        "answers that were no success": 1,
        "requests per second": 96.93,
        "p50, ms": 104.195,
        "p95, ms": 116.056,
    }


def test_k6s_figures_are_read_and_those_it_lacks_are_left_out() -> None:
    result = read_k6("k6 run", json.dumps(K6_SUMMARY))
    assert result.num_failed == 3
    assert result.figures["output tokens per second"] == 64
    assert result.figures["first byte p95, ms"] == 4.5
    assert "whole answer p50, ms" not in result.figures
