"""Scenarios that start `helixflow serve` themselves, with a scripted model."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from inference_server.bench import run_serve, run_startup, run_throughput
from inference_server.bench.options import LoadOptions, ReportOptions, StartupOptions, TargetOptions
from inference_server.bench.server_process import free_port, running
from inference_server.errors import Unavailable
from tests.server.running import is_alive

CONFIG = "models: {tiny: {source: 'scripted:?output_tokens=8', preload: true, max_model_len: 4096}}"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A models.yaml with one scripted model."""
    file = tmp_path / "models.yaml"
    file.write_text(CONFIG)
    return file


def own(config: Path) -> TargetOptions:
    """A server that the benchmark starts."""
    return TargetOptions(base_url=None, server_flags=("--config", str(config)))


def test_throughput_measures_each_level_of_a_server_that_it_starts_itself(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = LoadOptions(num_prompts=1, input_len=30, output_len=4, ignore_eos=True)
    report = ReportOptions(as_json=True, plot=tmp_path / "plot.html")
    assert run_throughput(own(config), load, report, levels=[1, 3], requests_per_stream=2) == 0
    result = json.loads(capsys.readouterr().out)
    levels = result["levels"]
    assert result["model"] == "tiny"
    assert [(level["max_concurrency"], level["completed"]) for level in levels] == [(1, 4), (3, 6)]
    assert [level["total_output_tokens"] for level in levels] == [16, 24]
    assert result["output_throughput"] == max(level["output_throughput"] for level in levels)
    assert "<svg" in (tmp_path / "plot.html").read_text()


def test_startup_times_its_stages_in_order_and_cold_starts_leave_nothing_behind(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_dir = tmp_path / "cache"
    options = StartupOptions(
        model=None,
        api_key=None,
        server_flags=("--config", str(config)),
        cache_dir=cache_dir,
        num_cold=1,
        num_warm=1,
    )
    assert run_startup(options, ReportOptions(as_json=True)) == 0
    result = json.loads(capsys.readouterr().out)
    for start in (*result["cold"], *result["warm"]):
        assert 0 < start["live_s"] <= start["ready_s"] < start["first_answer_s"]
    assert result["model"] == "tiny"
    assert result["avg_warm_startup_time"] == result["warm"][0]["ready_s"]
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "models.yaml"}
    assert (cache_dir / "scripted").is_dir()  # the warm start's


def test_a_server_that_does_not_come_up_is_reported_with_its_last_words(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG.replace("preload", "preloed"))
    with pytest.raises(Unavailable, match="did you mean `preload`"):
        run_serve(own(config), LoadOptions(num_prompts=1), ReportOptions())


@dataclass(frozen=True)
class Program:
    """Some program in place of a server."""

    code: str
    env: dict[str, str] = field(default_factory=dict)
    base_url: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]


def test_stopping_a_server_ends_the_children_that_it_leaves_behind(tmp_path: Path) -> None:
    code = "import os, subprocess; c = subprocess.Popen(['sleep', '600']); print(c.pid, flush=True); c.wait()"
    log = tmp_path / "log"
    with running(Program(code), log) as server:
        while not log.read_text().endswith("\n"):
            pass
        child = int(server.tail)
        assert is_alive(child)
        os.kill(server.pid, signal.SIGKILL)
    while is_alive(child):
        pass


def test_a_server_that_is_too_slow_is_given_up_with_what_it_has_written(tmp_path: Path) -> None:
    program = Program("import time; print('still loading', flush=True); time.sleep(600)")
    with (
        running(program, tmp_path / "log") as server,
        pytest.raises(Unavailable, match=r"within . s:\nstill loading"),
    ):
        server.wait_until("/health/ready", 1.0)
