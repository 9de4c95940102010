"""`helixflow check-config` and `helixflow list` without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.terminals import run

TEXT = """\
memory: {gpu: 80%}
defaults: {keep_alive: 10m}
models:
  small:
    source: org/small
    aliases: [tiny]
    preload: true
    kv_cache: {tokens: 4096}
    defaults: {temperature: 0.5}
server: {max_num_seqs: 8}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)


def rows(text: str) -> list[list[str]]:
    """The words of each line, columns being two blanks apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines() if line]


def test_it_shows_the_models_as_they_would_be_served() -> None:
    result = run("check-config")
    assert result.status == 0
    table = rows(result.out)
    assert table[0] == ["ok", "models.yaml: 1 model"]
    assert table[1][:2] == ["MODEL", "DEVICE"]
    assert table[2] == [
        "small",
        "auto",
        "auto",
        "auto",
        "model's",
        "4096 tokens",
        "10m",
        "preload",
        "org/small",
    ]


def test_it_shows_each_value_that_is_no_default_with_its_place() -> None:
    result = run("check-config", "--device", "cpu", env={"HELIXFLOW_API_KEY": "hunter2"})
    table = rows(result.out)
    assert table[table.index(["NOT A DEFAULT", "VALUE", "FROM"]) + 1 :] == [
        ["server.max_num_seqs", "8", "models.yaml, line 10"],
        ["server.api_key", "(hidden)", "HELIXFLOW_API_KEY"],
        ["memory.gpu", "80%", "models.yaml, line 1"],
        ["small.keep_alive", "10m", "models.yaml, line 2 (defaults)"],
        ["small.source", "org/small", "models.yaml, line 5"],
        ["small.aliases", "tiny", "models.yaml, line 6"],
        ["small.preload", "true", "models.yaml, line 7"],
        ["small.kv_cache", "4096 tokens", "models.yaml, line 8"],
        ["small.defaults.temperature", "0.5", "models.yaml, line 9"],
        ["small.device", "cpu", "--device"],
    ]
    assert "hunter2" not in result.out


def test_the_json_form_has_everything_and_no_secret() -> None:
    result = run("check-config", "--json", env={"HELIXFLOW_API_KEY": "hunter2"})
    found = json.loads(result.out)
    assert found["ok"] is True
    assert found["models"][0]["name"] == "small"
    assert found["settings"]["api_key"] == "(hidden)"
    assert found["origins"]["models"]["small"]["preload"] == "models.yaml, line 7"
    assert "hunter2" not in result.out


def test_errors_are_told_with_their_line_and_status_2() -> None:
    Path("models.yaml").write_text("models: {m: {source: a/b, dtyp: auto}}")
    result = run("check-config")
    assert (result.status, result.out) == (2, "")
    assert result.err == ("error: models.yaml, line 1: unknown key `models.m.dtyp`; did you mean `dtype`?\n")


def test_errors_in_json_are_json() -> None:
    Path("models.yaml").write_text("models: {m: {source: a/b, dtyp: auto}}\nserver: {port: x}\n")
    result = run("check-config", "--json")
    assert result.status == 2
    assert json.loads(result.out)["ok"] is False


def test_a_source_that_no_one_can_fetch_is_found_with_its_line() -> None:
    Path("models.yaml").write_text("models:\n  m:\n    source: 'ftp://x/y'\n  n:\n    source: a/b/c/d\n")
    result = run("check-config")
    assert result.status == 2
    assert "error: models.yaml, line 3: models.m: source must not be a URL" in result.err
    assert "error: models.yaml, line 5: models.n: source" in result.err


def test_without_a_file_all_is_default() -> None:
    Path("models.yaml").unlink()
    assert run("check-config").out == "ok  no models.yaml: 0 models\n"


def test_it_takes_a_model_as_serve_does() -> None:
    table = rows(run("check-config", "acme/Big", "--served-model-name", "big-one").out)
    assert ["big-one.source", "acme/Big", "MODEL"] in table
    assert ["big-one.name", "big-one", "--served-model-name"] in table
    assert ["small.preload", "false", "MODEL"] in table


def test_list_shows_what_is_configured() -> None:
    assert rows(run("list").out) == [["MODEL", "ALIASES", "SOURCE"], ["small", "tiny", "org/small"]]
    assert json.loads(run("list", "--json").out) == {
        "models": [{"name": "small", "source": "org/small", "aliases": ["tiny"], "preload": True}]
    }


def test_list_of_nothing_says_how_to_get_something() -> None:
    Path("models.yaml").unlink()
    result = run("list")
    assert (result.status, result.out) == (0, "")
    assert "no models" in result.err


def test_a_value_that_is_written_but_equals_the_default_is_not_in_the_table() -> None:
    Path("models.yaml").write_text(
        "memory: {gpu: 90%}\nserver: {port: 8000}\nmodels: {m: {source: a/b, dtype: auto}}\n"
    )
    table = rows(run("check-config").out)
    assert table[table.index(["NOT A DEFAULT", "VALUE", "FROM"]) + 1 :] == [
        ["m.source", "a/b", "models.yaml, line 3"]
    ]
