"""The GPU suite runs without a GPU, on a tiny model, and one part's failure is not another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite, gpu_timings


def test_a_dry_run_prints_a_table_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--dry-run", "--json", str(path), "--only"]
    arguments += ["graphs", "quantized", "machine", "bf16", "nf4"]
    assert gpu_suite.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| what | goal | measured | met |" in printed
    assert "| graphs and overlap | right |" in printed
    assert "| decode, one stream | ≥ 70 % of the roofline |" in printed
    result = json.loads(path.read_text())
    assert {
        "bandwidth",
        "gemm",
        "host_to_device",
        "decode_ms",
        "throughput",
        "prefill",
        "nf4_decode_ms",
    } <= set(result["figures"])
    assert all(value > 0 for value in result["figures"].values())
    assert result["machine"]["torch"] == torch.__version__


def test_a_part_that_fails_is_a_line_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: torch.device, sizes: gpu_timings.Sizes) -> float:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(gpu_timings, "gemm_rate", broken)
    assert gpu_suite.main(["--device", "cpu", "--dry-run", "--only", "machine", "bf16"]) == 1
    captured = capsys.readouterr()
    assert "failed: RuntimeError: no kernel image is available" in captured.out
    assert "output of 4 streams" in captured.out


def test_what_would_begin_too_late_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "DEADLINE_S", -1.0)
    assert gpu_suite.main(["--device", "cpu", "--dry-run", "--only", "machine"]) == 0
    assert "left out: no time" in capsys.readouterr().out


def test_figures_without_a_gpu_need_to_be_asked_for() -> None:
    with pytest.raises(SystemExit):
        gpu_suite.main(["--device", "cpu"])
