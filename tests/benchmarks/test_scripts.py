"""The scripts that start a server of their own, with a scripted model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import chunked_prefill, prefix_cache, speculation
from benchmarks.chunked_prefill import disturbed_gaps, quiet_gaps

MOMENTS = st.integers(0, 100).map(float)
TIMES = st.lists(MOMENTS, max_size=30).map(sorted)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A models.yaml with a scripted model that takes 2 ms per step."""
    file = tmp_path / "models.yaml"
    file.write_text("models: {tiny: {source: 'scripted:?step_ms=2', preload: true, max_model_len: 8192}}")
    return file


def test_requests_with_a_shared_prompt_find_it_in_the_cache_only_where_there_is_one(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--requests", "3", "--levels", "1", "3", "--prefix-tokens", "100"]
    assert prefix_cache.main(arguments) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "| o" in line]
    cached = {(row[0].strip("| "), row[1]): float(row[4]) for row in rows if "÷" not in row[1]}
    assert cached["1", "off"] == cached["3", "off"] == 0
    assert min(cached["1", "on"], cached["3", "on"]) > 300  # bytes are this model's tokens


def test_a_long_prompt_has_the_length_that_was_asked_for_and_gaps_are_told_apart(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--streams", "2", "--quiet-tokens", "20", "--repeats", "2"]
    assert chunked_prefill.main(arguments) == 0
    shown = capsys.readouterr().out
    lengths = [int(found) for found in re.findall(r"(\d+) tokens in", shown)]
    assert len(lengths) == 2
    assert all(3900 < length < 4100 for length in lengths)
    quiet, disturbed = (int(found) for found in re.findall(r"^\| [a-z ]+ \| (\d+) \|", shown, re.MULTILINE))
    assert quiet >= 60
    assert disturbed >= 16  # 4,000 tokens are 8 steps of 512


def test_streams_that_end_before_the_long_prompt_are_an_error(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--streams", "2", "--quiet-tokens", "20", "--max-tokens", "10"]
    assert chunked_prefill.main(arguments) == 1
    assert "give more --max-tokens" in capsys.readouterr().err


@given(TIMES, MOMENTS, MOMENTS)
def test_no_gap_is_quiet_and_disturbed_at_once(times: list[float], one: float, other: float) -> None:
    start_s, sent_s = sorted((one, other))
    quiet = quiet_gaps([times], start_s, sent_s)
    disturbed = disturbed_gaps([times], sent_s, 100.0)
    assert len(quiet) + len(disturbed) <= max(0, len(times) - 1)
    assert sum(disturbed) >= (times[-1] - sent_s if times and times[0] <= sent_s < times[-1] < 100 else 0)


def test_speculation_is_compared_with_its_absence_on_the_same_tasks(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--passages", "1", "--max-tokens", "20"]
    assert speculation.main(arguments) == 0
    shown = capsys.readouterr().out
    rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == ["repeat", "rewrite", "extract", "all"]
    assert all(1 <= int(row[1]) <= 20 for row in rows[1:4])
    assert "Answers that differed: 0." in shown
