"""`helixflow plan`: what models take, from their files and this machine, and what a server says of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints.files import write_native_folder
from tests.cli.server import MEMORY, serving
from tests.cli.terminals import run

NOBODY = "http://127.0.0.1:9"
FORECAST = {
    "model": "m",
    "outcome": "evicts",
    "message": "idle models leave for it",
    "plan": None,
    "victims": [{"model": "old", "sleeps": False}, {"model": "older", "sleeps": True}],
    "memory": MEMORY,
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of real shape, and a models.yaml with more."""
    monkeypatch.chdir(tmp_path)
    write_native_folder(tmp_path / "model")
    (tmp_path / "models.yaml").write_text(
        "memory: {host: 4GiB}\n"
        "models:\n"
        "  plain: {source: ./model, max_model_len: 32}\n"
        "  small: {source: ./model, max_model_len: 32, quantization: int8}\n"
        "  absent: {source: 'pypi:nothing==1/m.gguf'}\n",
        encoding="utf-8",
    )
    return tmp_path


def test_all_models_are_one_table_with_the_budget_below() -> None:
    result = run("plan", "--cache-dir", "cache")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split()[:3] == ["MODEL", "DEVICE", "QUANTIZATION"]
    assert lines[1].split()[:3] == ["plain", "cpu", "none"]
    assert lines[2].split()[:3] == ["small", "cpu", "int8"]
    assert lines[3].split() == ["absent"] + ["-"] * 6
    assert lines[4].startswith("cpu: a budget of 4 GiB; all of these take ")
    assert "helixflow pull absent" in result.err
    assert max(map(len, lines)) <= 80


def test_one_model_is_told_in_full_and_adds_up() -> None:
    plan = json.loads(run("plan", "plain", "--json", "--cache-dir", "cache", "--base-url", NOBODY).out)[
        "plan"
    ]
    parts = ("weights_bytes", "kv_cache_bytes", "workspace_bytes", "context_bytes")
    assert sum(plan[part] for part in parts) == sum(plan["bytes_by_device"].values())
    result = run("plan", "plain", "--cache-dir", "cache", "--base-url", NOBODY)
    assert result.status == 0
    for expected in (
        "none (auto: the weights as they come",
        "32 tokens",
        "KV cache",
        "of a budget of 4 GiB",
        "no server answers there",
    ):
        assert expected in result.out


def test_a_server_tells_who_would_leave() -> None:
    with serving((200, FORECAST)) as server:
        result = run("plan", "plain", "--cache-dir", "cache", "--base-url", server.url)
    assert server.paths == ["/models/plan"]
    assert server.requests == [{"model": "plain"}]
    found = result.out.partition(f"on {server.url}")[2]
    assert [line.split("  ")[-1].strip() for line in found.strip().splitlines()] == [
        "idle models leave for it",
        "is unloaded",
        "goes to sleep",
        "1.25 GiB of 8 GiB reserved",
    ]


def test_a_model_larger_than_the_budget_is_an_error(workplace: Path) -> None:
    config = workplace / "models.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("4GiB", "1MiB"), encoding="utf-8")
    every = run("plan", "--cache-dir", "cache")
    assert every.status == 1
    assert "plain is larger than the whole budget" in every.err
    one = run("plan", "small", "--cache-dir", "cache", "--base-url", NOBODY)
    assert (one.status, "larger than the whole budget" in one.err) == (1, True)


def test_a_model_whose_files_are_not_here_is_said_to_be_so() -> None:
    result = run("plan", "absent", "--cache-dir", "cache", "--base-url", NOBODY)
    assert result.status == 0
    assert "helixflow pull absent" in result.out
