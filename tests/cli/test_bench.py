"""`helixflow bench`, up to the load client."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import inference_server.bench
from tests.bench.server import running
from tests.cli.server import serving
from tests.cli.terminals import run


class Calls(list[tuple[str, tuple[Any, ...], dict[str, Any]]]):
    """(function, options, more) of each call of the load client."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stands in for the load client and remembers what it was asked."""
    found = Calls()
    for name in ("run_serve", "run_throughput", "run_startup", "run_swap"):

        def remember(*options: Any, name: str = name, **more: Any) -> int:
            found.append((name, options, more))
            return 0

        monkeypatch.setattr(inference_server.bench, name, remember)
    return found


def test_the_defaults_are_a_small_closed_loop(calls: Calls) -> None:
    assert run("bench", "serve", "--model", "m", "--max-concurrency", "16").status == 0
    [(name, (target, load, report), _)] = calls
    assert name == "run_serve"
    assert (target.base_url, target.model, target.api_key) == ("http://127.0.0.1:8000", "m", None)
    assert (load.max_concurrency, load.num_prompts) == (16, 64)
    assert (load.input_len, load.output_len, load.ignore_eos, load.seed) == (150, 64, False, 0)
    assert math.isinf(load.request_rate)
    assert (load.burstiness, load.label) == (1.0, None)
    assert (report.metrics, report.goals_ms) == (("ttft", "tpot", "itl", "e2el"), {})
    assert (report.save_result, report.plot, report.as_json) == (None, None, False)


def test_every_flag_arrives(calls: Calls) -> None:
    flags = "--request-rate 2.5 --burstiness 0.5 --goodput ttft:500 tpot:50 --percentile-metrics ttft,itl"
    more = "--save-result r.json --plot p.html --json --ignore-eos --seed 3"
    more += " --base-url http://h:1/v1/ --api-key k"
    assert run("bench", "serve", "--model", "m", *flags.split(), *more.split()).status == 0
    [(_, (target, load, report), _)] = calls
    assert (target.base_url, target.api_key) == ("http://h:1", "k")
    assert (load.request_rate, load.burstiness, load.ignore_eos, load.seed) == (2.5, 0.5, True, 3)
    assert (report.goals_ms, report.metrics) == ({"ttft": 500.0, "tpot": 50.0}, ("ttft", "itl"))
    assert (report.save_result, report.plot, report.as_json) == (Path("r.json"), Path("p.html"), True)


def test_latency_is_one_stream_of_answers_of_fixed_length(calls: Calls) -> None:
    assert run("bench", "latency", "--start", "--config", "m.yaml").status == 0
    [(name, (target, load, _), _)] = calls
    assert (name, target.base_url, target.server_flags) == ("run_serve", None, ("--config", "m.yaml"))
    assert (load.max_concurrency, load.num_prompts, load.ignore_eos) == (1, 16, True)


def test_throughput_has_levels(calls: Calls) -> None:
    arguments = ("--levels", "2", "8", "--requests-per-stream", "3", "--no-ignore-eos")
    assert run("bench", "throughput", *arguments, env={"HELIXFLOW_API_KEY": "k"}).status == 0
    [(name, (target, load, _), more)] = calls
    assert (name, more) == ("run_throughput", {"levels": [2, 8], "requests_per_stream": 3})
    assert (target.api_key, load.ignore_eos) == ("k", False)


def test_startup_counts_cold_and_warm_starts(calls: Calls) -> None:
    arguments = ("--model", "m", "--num-iters-cold", "0", "--cache-dir", "c")
    assert run("bench", "startup", *arguments).status == 0
    [(name, (options, report), _)] = calls
    assert (name, report.as_json) == ("run_startup", False)
    assert (options.model, options.cache_dir) == ("m", Path("c"))
    assert (options.num_cold, options.num_warm, options.server_flags) == (0, 3, ())


def test_each_scenario_explains_its_own_flags() -> None:
    assert "--request-rate" in run("bench", "serve", "--help").out
    assert "--levels" in run("bench", "throughput", "--help").out
    assert "--request-rate" not in run("bench", "latency", "-h").out
    assert "--num-iters-warm" in run("bench", "startup", "--help").out
    overview = run("bench", "--help").out
    assert all(name in overview for name in ("serve", "latency", "throughput", "startup"))


def test_without_a_model_the_server_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
    with serving(*[(text,)] * 3) as server:
        arguments = ("bench", "serve", "--num-prompts", "2", "--max-concurrency", "1", "--json")
        assert run(*arguments, env={"HELIXFLOW_BASE_URL": server.url}).status == 0
        assert {request["model"] for request in server.requests} == {"warm"}
    assert '"completed": 2' in capsys.readouterr().out


def test_a_server_that_is_not_there_is_an_error_with_a_way_out() -> None:
    result = run("bench", "serve", "--base-url", "http://127.0.0.1:1")
    assert result.status == 1
    assert "no server answers at http://127.0.0.1:1" in result.err
    assert "--start" in result.err


def test_a_server_that_refuses_every_request_is_an_error() -> None:
    with running(lambda body: "no such model") as server:
        result = run("bench", "latency", "--base-url", server.url, "--model", "m")
    assert result.status == 1
    assert "does not serve m" in result.err
    assert "no such model" in result.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "scenario"),
        (("speed",), "invalid choice: 'speed'"),
        (("latency", "--request-rate", "1"), "unknown flag --request-rate"),
        (("latency", "--config", "m.yaml"), "--config is for the server that --start starts"),
        (("latency", "--start", "--base-url", "http://h"), "leave out --base-url"),
        (("throughput", "--levels", "0"), "--levels: expected a whole number from 1"),
        (("startup", "--num-iters-cold", "0", "--num-iters-warm", "0"), "nothing to do"),
        (("serve", "--plot", "plot.png"), "ends in .html"),
        (("serve", "--num-prompts", "0"), "--num-prompts: expected a whole number from 1"),
        (("serve", "--request-rate", "-1"), "--request-rate: expected a number above 0"),
        (("serve", "--goodput", "speed:5"), "expected METRIC:MS such as ttft:500"),
        (("serve", "--goodput", "ttft:fast"), "expected a number above 0"),
        (("serve", "--percentile-metrics", "ttft,tpto"), "did you mean `tpot`?"),
        (("serve", "--num-promts", "5"), "did you mean `--num-prompts`?"),
    ],
)
def test_wrong_flags_are_usage_errors(calls: Calls, arguments: tuple[str, ...], expected: str) -> None:
    result = run("bench", *arguments)
    assert result.status == 2
    assert expected in result.err
    assert calls == []


def test_swap_takes_a_model_of_the_file_and_makes_small_equal_entries_of_it(
    calls: Calls, tmp_path: Path
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        "models: {a: {source: scripted, quantization: int8, pinned: true}, b: {source: ./folder}}"
    )
    assert run("bench", "swap", "--config", str(file), "--quick").status == 0
    [(name, (options, report), _)] = calls
    assert name == "run_swap"
    assert options.entry["source"] == "scripted"
    assert options.entry["quantization"] == "int8"
    assert options.entry["max_model_len"] == 1024
    assert "pinned" not in options.entry
    assert (options.num_prompts, options.seeds, options.num_rounds) == (60, (1,), 1)
    assert report.plot is None
    assert run("bench", "swap", "--config", str(file), "--model", "b", "--seeds", "3", "4").status == 0
    options = calls[1][1][0]
    assert options.entry["source"] == str(tmp_path / "folder")
    assert (options.num_prompts, options.seeds, options.num_rounds) == (600, (3, 4), 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--names", "a", "b"], "give it, too"),
        (["--base-url", "http://127.0.0.1:1", "--names", "a"], "two or more"),
        (["--base-url", "http://127.0.0.1:1", "--names", "a", "b", "--model", "m"], "leave out --base-url"),
        (["--num-models", "2"], "nothing would be swapped"),
        (["--traces", "pong"], "invalid choice"),
    ],
)
def test_swap_refuses_flags_that_contradict_each_other(calls: Calls, flags: list[str], said: str) -> None:
    result = run("bench", "swap", *flags)
    assert result.status == 2
    assert said in result.err
    assert not calls
