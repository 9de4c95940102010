"""`helixflow bench serve`, up to the load client."""

from __future__ import annotations

import math
import sys
import types
from argparse import Namespace

import pytest

from tests.cli.server import serving
from tests.cli.terminals import run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """Stands in for the load client and remembers what it was asked."""
    found: list[Namespace] = []
    module = types.ModuleType("inference_server.bench")

    def run_serve(args: Namespace) -> int:
        found.append(args)
        return 0

    module.run_serve = run_serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "inference_server.bench", module)
    return found


def test_the_defaults_are_a_small_closed_loop(calls: list[Namespace]) -> None:
    assert run("bench", "serve", "--model", "m", "--max-concurrency", "16").status == 0
    [args] = calls
    assert (args.base_url, args.model, args.max_concurrency, args.num_prompts) == (
        "http://127.0.0.1:8000",
        "m",
        16,
        64,
    )
    assert (args.random_input_len, args.output_len, args.ignore_eos, args.seed) == (150, 64, False, 0)
    assert math.isinf(args.request_rate)
    assert (args.burstiness, args.goodput, args.percentile_metrics) == (1.0, [], "ttft,tpot,itl,e2el")
    assert (args.save_result, args.json, args.api_key) == (None, False, None)


def test_every_flag_arrives(calls: list[Namespace]) -> None:
    flags = "--request-rate 2.5 --burstiness 0.5 --goodput ttft:500 tpot:50 --percentile-metrics ttft,itl"
    more = "--save-result r.json --json --ignore-eos --seed 3 --base-url http://h:1/v1/ --api-key k"
    assert run("bench", "serve", "--model", "m", *flags.split(), *more.split()).status == 0
    [args] = calls
    assert (args.request_rate, args.burstiness, args.goodput) == (2.5, 0.5, ["ttft:500", "tpot:50"])
    assert (args.percentile_metrics, args.save_result, args.json) == ("ttft,itl", "r.json", True)
    assert (args.ignore_eos, args.seed, args.base_url, args.api_key) == (True, 3, "http://h:1", "k")


def test_without_a_model_the_server_is_asked(calls: list[Namespace]) -> None:
    with serving() as server:
        assert run("bench", "serve", env={"HELIXFLOW_BASE_URL": server.url}).status == 0
    assert calls[0].model == "warm"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "scenario"),
        (("latency",), "invalid choice: 'latency'"),
        (("serve", "--num-prompts", "0"), "--num-prompts: expected a whole number from 1"),
        (("serve", "--request-rate", "-1"), "--request-rate: expected a number above 0"),
        (("serve", "--goodput", "speed:5"), "expected METRIC:MS such as ttft:500"),
        (("serve", "--goodput", "ttft:fast"), "expected a number above 0"),
        (("serve", "--percentile-metrics", "ttft,tpto"), "did you mean `tpot`?"),
        (("serve", "--num-promts", "5"), "did you mean `--num-prompts`?"),
    ],
)
def test_wrong_flags_are_usage_errors(
    calls: list[Namespace], arguments: tuple[str, ...], expected: str
) -> None:
    result = run("bench", *arguments)
    assert result.status == 2
    assert expected in result.err
    assert calls == []
