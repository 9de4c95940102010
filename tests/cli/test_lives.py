"""`ps`, `load`, `stop` against a scripted server, and `show` and `rm` on a cache folder of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inference_server.checkpoints.scripted import write_scripted_folder
from inference_server.checkpoints.sources import ScriptedSource
from inference_server.cli import ps as ps_verb
from inference_server.cli.residents import short_duration
from tests.cli.server import LIVES, serving
from tests.cli.terminals import run

# ---------------------------------------------------------------- ps


def test_ps_shows_what_is_in_memory_or_on_its_way_within_eighty_columns() -> None:
    with serving() as server:
        result = run("ps", "--base-url", server.url)
    assert result.status == 0
    lines = [re.split(r"\s{2,}", line) for line in result.out.splitlines()]
    assert lines[:6] == [
        ["MODEL", "STATE", "DEVICE", "MEMORY", "LAST USED", "EXPIRES", "QUEUE"],
        ["warm", "loaded", "cpu", "1 GiB", "2m ago", "in 8m", "0"],
        ["busy", "loaded", "cuda:0", "1.5 GiB", "now (3)", "-", "2"],
        ["coming", "loading 43%", "-", "-", "-", "-", "1"],
        ["broken", "failed", "-", "-", "-", "retry 10s", "0"],
        ["napping", "sleeping", "cpu", "256 MiB", "2h ago", "never", "0"],
    ]
    assert result.out.splitlines()[6] == "cpu: 1.25 GiB of 8 GiB reserved"
    assert max(map(len, result.out.splitlines())) <= 80


def test_ps_all_also_shows_what_is_not_in_memory() -> None:
    with serving() as server:
        assert "cold" not in run("ps", "--base-url", server.url).out
        assert "cold" in run("ps", "--all", "--base-url", server.url).out


def test_ps_as_json_is_what_the_server_says() -> None:
    with serving() as server:
        found = json.loads(run("ps", "--json", "--base-url", server.url).out)
    assert found["models"] == LIVES
    assert found["memory"][0]["device"] == "cpu"


def test_ps_watch_draws_the_table_anew_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ps_verb.time, "sleep", sleep)
    with serving() as server:
        result = run("ps", "--watch", "--base-url", server.url, tty=True)
    assert result.status == 0
    assert len(server.headers) == 3  # one question per table
    assert result.out.count("napping") >= 3
    assert pauses == [ps_verb.REFRESH_S] * 3


def test_ps_watch_without_a_terminal_prints_once() -> None:
    with serving() as server:
        assert run("ps", "--watch", "--base-url", server.url).out.count("napping") == 1


@pytest.mark.parametrize("arguments", [("ps",), ("load", "m"), ("stop", "m")])
def test_without_a_server_it_is_said_how_to_start_one(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--base-url", "http://127.0.0.1:9")
    assert result.status == 1
    assert "start one with `helixflow serve`" in result.err


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0s"), (59, "59s"), (61, "1m"), (7300, "2h"), (2e5, "2d")]
)
def test_durations_are_shown_in_their_largest_unit(seconds: float, shown: str) -> None:
    assert short_duration(seconds) == shown


# ---------------------------------------------------------------- load and stop


def test_load_asks_the_server_and_says_when_the_model_is_there() -> None:
    with serving((200, {"success": True})) as server:
        result = run("load", "gpt", "--keep-alive", "2h", "--base-url", server.url)
    assert (result.status, result.out) == (0, "gpt is loaded\n")
    assert server.paths == ["/models/load"]
    assert server.requests == [{"model": "gpt", "keep_alive": "2h"}]


def test_load_as_json_prints_the_model() -> None:
    with serving((200, {"success": True})) as server:
        result = run("load", "gpt", "--json", "--base-url", server.url)
    assert json.loads(result.out)["id"] == "warm"


def test_a_load_that_fails_says_why() -> None:
    refusal = {"error": {"message": "it needs 9 GiB", "code": "insufficient_memory"}}
    with serving((503, refusal)) as server:
        result = run("load", "huge", "--base-url", server.url)
    assert result.status == 1
    assert result.err.splitlines()[-1] == "error: it needs 9 GiB"


def test_stop_unloads() -> None:
    with serving((200, {"success": True})) as server:
        result = run("stop", "warm", "--base-url", server.url)
    assert (result.status, server.paths, server.requests) == (0, ["/models/unload"], [{"model": "warm"}])


# ---------------------------------------------------------------- show and rm


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a models.yaml, and a cache that has the files of both its models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.yaml").write_text(
        "models:\n"
        "  warm: {source: 'scripted:?output_tokens=3', aliases: [gpt]}\n"
        "  same: {source: 'scripted:?output_tokens=3'}\n"
        "  cold: {source: 'scripted:?output_tokens=4', keep_alive: 10m}\n"
        "  absent: {source: 'scripted:?output_tokens=5'}\n",
        encoding="utf-8",
    )
    for number in "34":
        write_scripted_folder(ScriptedSource((("output_tokens", number),)), tmp_path / "cache")
    return tmp_path


def test_show_tells_entry_files_facts_and_state(workplace: Path) -> None:
    with serving() as server:
        result = run("show", "gpt", "--cache-dir", "cache", "--base-url", server.url)
    assert result.status == 0, result.err
    for expected in (
        "source        scripted:?output_tokens=3  (line 2)",
        "scripted/v",
        "architecture     ScriptedModel",
        "longest context  32768 tokens",
        "chat template    yes",
        f"on {server.url}",
        "state      loaded",
        "last used  2m ago",
    ):
        assert expected in result.out


def test_show_tells_every_key_that_is_set(workplace: Path) -> None:
    entry = "{source: scripted, tool_parser: hermes, defaults: {temperature: 0.5}}"
    (workplace / "models.yaml").write_text(f"models:\n  one: {entry}\n", encoding="utf-8")
    with serving() as server:
        result = run("show", "one", "--json", "--cache-dir", "cache", "--base-url", server.url)
    shown = json.loads(result.out)["entry"]
    assert shown["tool_parser"] == "hermes  (line 2)"
    assert shown["defaults.temperature"] == "0.5  (line 2)"


def test_show_as_json_has_the_same_parts(workplace: Path) -> None:
    with serving() as server:
        result = run("show", "cold", "--json", "--cache-dir", "cache", "--base-url", server.url)
    shown = json.loads(result.out)
    assert shown["name"] == "cold"
    assert shown["entry"]["keep_alive"] == "10m  (line 4)"
    assert shown["model"]["architecture"] == "ScriptedModel"
    assert shown["state"]["status"] == "unloaded"


def test_show_of_a_model_whose_files_are_not_here_says_how_to_get_them(workplace: Path) -> None:
    result = run("show", "absent", "--cache-dir", "cache", "--base-url", "http://127.0.0.1:9")
    assert result.status == 0
    assert "helixflow pull absent" in result.out
    assert "no server answers there" in result.out


def test_rm_deletes_a_models_files_and_leaves_the_others(workplace: Path) -> None:
    with serving() as server:
        result = run("rm", "cold", "--yes", "--cache-dir", "cache", "--base-url", server.url)
    assert result.status == 0, result.err
    assert "KiB of cold were deleted" in result.out
    assert len(list((workplace / "cache" / "scripted").iterdir())) == 1
    with serving() as server:
        again = run("rm", "cold", "--yes", "--cache-dir", "cache", "--base-url", server.url)
    assert (again.status, again.out) == (0, "")
    assert "nothing that only cold needs" in again.err


def test_rm_keeps_what_another_model_needs(workplace: Path) -> None:
    with serving() as server:
        result = run("rm", "same", "--yes", "--cache-dir", "cache", "--base-url", server.url)
    assert "nothing that only same needs" in result.err
    assert len(list((workplace / "cache" / "scripted").iterdir())) == 2


def test_rm_refuses_while_the_model_is_loaded(workplace: Path) -> None:
    with serving() as server:
        result = run("rm", "warm", "--yes", "--cache-dir", "cache", "--base-url", server.url)
    assert result.status == 1
    assert "first say: helixflow stop warm" in result.err
    assert len(list((workplace / "cache" / "scripted").iterdir())) == 2


@pytest.mark.parametrize(("answer", "status", "num_left"), [("y", 0, 1), ("", 1, 2), (EOFError, 1, 2)])
def test_rm_asks_first(
    workplace: Path, answer: str | type[BaseException], status: int, num_left: int
) -> None:
    with serving() as server:
        result = run("rm", "cold", "--cache-dir", "cache", "--base-url", server.url, tty=True, lines=[answer])
    assert result.status == status
    assert len(list((workplace / "cache" / "scripted").iterdir())) == num_left


def test_rm_without_anybody_to_ask_needs_yes(workplace: Path) -> None:
    with serving() as server:
        result = run("rm", "cold", "--cache-dir", "cache", "--base-url", server.url)
    assert result.status == 2
    assert "say --yes" in result.err
    assert len(list((workplace / "cache" / "scripted").iterdir())) == 2


def test_rm_as_json_names_what_it_deleted(workplace: Path) -> None:
    with serving() as server:
        result = run("rm", "cold", "--yes", "--json", "--cache-dir", "cache", "--base-url", server.url)
    deleted = json.loads(result.out)
    assert deleted["model"] == "cold"
    assert deleted["bytes"] > 0
    assert not any(Path(path).exists() for path in deleted["deleted"])
