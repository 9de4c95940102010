"""The command as a whole: help, unknown words, exit statuses, weight."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from inference_server import __version__
from inference_server.cli.main import VERBS
from inference_server.config.setting_keys import SETTINGS, flag_name
from inference_server.errors import FetchFailed, ModelLoadFailed
from tests.cli.terminals import run


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("help",)])
def test_help_lists_every_command(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.status == 0
    assert all(f"\n  {verb} " in result.out for verb in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_command_explains_itself(verb: str) -> None:
    for arguments in ((verb, "--help"), ("help", verb)):
        result = run(*arguments)
        assert (result.status, result.err) == (0, "")
        assert result.out.startswith(f"usage: helixflow {verb}")


def test_serve_help_shows_every_setting_with_its_default() -> None:
    text = " ".join(run("serve", "--help").out.split())
    assert all(flag_name(name) in text for name in SETTINGS)
    assert "default: 8000" in text
    assert "default: 2 MiB" in text
    assert "default: 10m" in text


def test_no_command_is_a_usage_error_that_shows_the_way() -> None:
    result = run()
    assert result.status == 2
    assert result.err == "error: no command given\ntry: helixflow --help\n"


def test_an_unknown_command_names_the_nearest_one() -> None:
    result = run("serv")
    assert result.status == 2
    assert "unknown command 'serv'; did you mean `serve`?" in result.err


def test_an_unknown_flag_names_the_nearest_one() -> None:
    result = run("serve", "--prot", "8080")
    assert result.status == 2
    assert result.err.splitlines() == [
        "error: unknown flag --prot; did you mean `--port`?",
        "try: helixflow serve --help",
    ]


def test_flags_may_not_be_abbreviated() -> None:
    assert "unknown flag --max-num-se" in run("serve", "--max-num-se", "4").err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("serve", "a/b", "extra"), "unexpected argument 'extra'"),
        (("serve", "--port"), "--port: expected one argument"),
        (("pull",), "MODEL"),
        (("version", "--verbose"), "unknown flag --verbose"),
    ],
)
def test_wrong_usage_is_told_with_status_2(arguments: tuple[str, ...], expected: str) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert expected in result.err
    assert result.out == ""


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_version_tells_the_version(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.status == 0
    assert __version__ in result.out


def test_version_as_json_names_what_it_runs_on() -> None:
    versions = json.loads(run("version", "--json").out)
    assert versions["helixflow"] == __version__
    assert {"python", "torch", "transformers", "bitsandbytes"} <= set(versions)


def test_colour_appears_on_a_terminal_only_and_can_be_refused() -> None:
    assert "\x1b[" in run("--help", tty=True).out
    assert "\x1b[" not in run("--help").out
    assert "\x1b[" not in run("--help", tty=True, env={"NO_COLOR": "1"}).out
    assert "\x1b[" not in run("--help", tty=True, env={"TERM": "dumb"}).out


# ---------------------------------------------------------------- serve and pull, up to the composition root


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands in for the composition root and remembers what it was asked."""
    module = types.ModuleType("inference_server.app")
    module.calls = []  # type: ignore[attr-defined]

    def serve(settings: object, catalog: object, display: object, read: object) -> int:
        module.calls.append((settings, catalog))
        return 0

    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "inference_server.app", module)
    return module


def test_serve_hands_the_resolved_configuration_to_the_composition_root(app: types.ModuleType) -> None:
    assert (
        run("serve", "org/Some-Name", "--port", "9", "--log-json", env={"HELIXFLOW_MAX_NUM_SEQS": "3"}).status
        == 0
    )
    [(settings, catalog)] = app.calls
    assert (settings.port, settings.max_num_seqs, settings.log_json) == (9, 3, True)
    assert catalog.models["some-name"].source == "org/Some-Name"
    assert catalog.models["some-name"].preload


def test_serve_without_any_model_says_how_to_give_one(app: types.ModuleType) -> None:
    result = run("serve")
    assert result.status == 2
    assert "no model to serve: name one (helixflow serve org/name)" in result.err
    assert app.calls == []


def test_serve_passes_on_the_exit_status(app: types.ModuleType) -> None:
    app.serve = lambda _settings, _catalog, _display, _read: 1  # type: ignore[attr-defined]
    assert run("serve", "scripted").status == 1


@pytest.mark.parametrize(
    ("arguments", "env", "expected"),
    [
        (("serve", "a/b", "--host", "0.0.0.0"), {}, "refusing to listen on 0.0.0.0 without an API key"),
        (("serve", "a/b", "--port", "x"), {}, "--port: expected a whole number"),
        (("serve", "a/b"), {"HELIXFLOW_PROT": "1"}, "did you mean `HELIXFLOW_PORT`?"),
        (("serve", "nonsense"), {}, "MODEL: The model 'nonsense' does not exist"),
        (("serve", "https://x.org/y"), {}, "MODEL: models.y: source must not be a URL"),
        (("serve", "--config", "none.yaml"), {}, "--config: no such file: none.yaml"),
    ],
)
def test_a_wrong_configuration_ends_serve_with_status_2(
    app: types.ModuleType, arguments: tuple[str, ...], env: dict[str, str], expected: str
) -> None:
    result = run(*arguments, env=env)
    assert result.status == 2
    assert expected in result.err
    assert app.calls == []


def test_several_problems_are_several_error_lines(app: types.ModuleType) -> None:
    err = run("serve", "a/b", "--port", "x", "--log-level", "loud").err
    assert [line[:7] for line in err.splitlines()] == ["error: ", "error: "]


@pytest.mark.parametrize(
    ("error", "status"),
    [(FetchFailed("the disk is full"), 1), (ModelLoadFailed("it is broken"), 1), (KeyboardInterrupt(), 130)],
)
def test_what_fails_later_has_its_own_status(
    app: types.ModuleType, error: BaseException, status: int
) -> None:
    def fail(*_: object) -> int:
        raise error

    app.serve = fail  # type: ignore[attr-defined]
    result = run("serve", "scripted")
    assert result.status == status
    assert "Traceback" not in result.err


def test_pull_shows_each_stage_and_says_when_it_is_done(app: types.ModuleType) -> None:
    from inference_server.worker.protocol import Progress

    def pull(_settings: object, spec: object, on_progress: object) -> int:
        assert callable(on_progress)
        app.calls.append(spec)
        for fraction in (None, 0.5, 1.0):
            on_progress(Progress(stage="download", fraction=fraction))
        on_progress(Progress(stage="convert"))
        return 0

    app.pull = pull  # type: ignore[attr-defined]
    result = run("pull", "org/Some-Name")
    assert (result.status, result.out) == (0, "some-name is in the cache\n")
    assert result.err == "download …\nconvert …\n"
    assert app.calls[0].source == "org/Some-Name"
    on_terminal = run("pull", "org/Some-Name", tty=True)
    assert on_terminal.status == 0
    assert "100%" in on_terminal.err


def test_pull_of_an_unknown_name_is_a_configuration_error(app: types.ModuleType) -> None:
    result = run("pull", "nonsense")
    assert result.status == 2
    assert "MODEL: The model 'nonsense' does not exist" in result.err


# ---------------------------------------------------------------- as a process


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_no_command_line_imports_torch_or_the_web_framework() -> None:
    code = (
        "import sys; from inference_server.cli.main import main\n"
        f"for verb in {list(VERBS)}: main([verb, '--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'starlette', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    command = f"{sys.executable} -m inference_server.cli.main serve --help | true"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""
