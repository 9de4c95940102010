"""`bench swap` from end to end, with scripted models on servers of its own and on one that runs already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference_server.bench import run_swap
from inference_server.bench.options import ReportOptions, SwapOptions
from inference_server.bench.swap import budget_bytes
from inference_server.bench.swap_server import POLICIES, Policy, configuration
from inference_server.config.catalog import parse_catalog
from inference_server.errors import Unavailable
from inference_server.model_manager.workspace import SCRIPTED_CONTEXT_BYTES
from tests.bench.server import running
from tests.server.running import running_server

ENTRY = {"source": "scripted:?load_ms=60&step_ms=1", "max_model_len": 1024}
SMALL = {"num_prompts": 24, "num_rounds": 1, "streams": 4, "input_len": 30, "output_len": 4}


def test_both_policies_meet_the_same_trace_under_a_budget_for_two_of_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    options = SwapOptions(base_url=None, entry=ENTRY, num_models=3, traces=("zipf",), seeds=(7,), **SMALL)
    assert run_swap(options, ReportOptions(as_json=True, save_result=file)) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == result
    assert result["model_bytes"] == SCRIPTED_CONTEXT_BYTES
    assert result["budget_bytes"] == budget_bytes(SCRIPTED_CONTEXT_BYTES, 2)
    assert result["request_rate"] == pytest.approx(0.8 * result["capacity"])
    assert (result["num_cold"], result["p50_cold_ms"] > 60) == (3, True)
    assert [(t["policy"], t["completed"], t["failed"]) for t in result["trials"]] == [
        ("default", 24, 0),
        ("plain-lru", 24, 0),
    ]
    for trial in result["trials"]:
        assert trial["swaps"] == trial["loads"] + trial["wakes"] >= 3  # nothing was loaded before
        assert trial["evictions"] >= 1  # the third model found no room
        assert trial["p50_wait_ms"] <= trial["p99_wait_ms"] <= trial["max_wait_ms"]
    [compared] = result["compared"]
    assert (compared["trace"], compared["seed"]) == ("zipf", 7)
    swaps = [trial["swaps"] for trial in result["trials"]]
    assert compared["swaps_ratio"] == pytest.approx(swaps[1] / swaps[0])


def test_a_running_server_is_measured_as_it_is_configured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {a: {source: scripted}, b: {source: scripted}}")
    with running_server(config) as server:
        options = SwapOptions(
            base_url=server.url,
            names=("a", "b"),
            num_models=2,
            num_resident=1,
            traces=("ping-pong", "burst"),
            **SMALL,
        )
        assert run_swap(options, ReportOptions()) == 0
    shown = capsys.readouterr().out
    assert "as-configured" in shown
    assert "plain-lru" not in shown
    assert "ping-pong" in shown


def test_a_server_without_the_lifecycle_routes_is_refused_with_its_words() -> None:
    with running(lambda body: "no such route") as server, pytest.raises(Unavailable, match="no such route"):
        run_swap(SwapOptions(base_url=server.url, names=("a", "b")), ReportOptions())


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy.name))
def test_each_policy_is_a_configuration_of_equal_models(policy: Policy) -> None:
    options = SwapOptions(base_url=None, entry=ENTRY, num_models=4)
    tree = configuration(options, policy, 1 << 30)
    catalog = parse_catalog(json.dumps(tree), origin="generated")
    assert len({(spec.source, spec.max_model_len) for spec in catalog.models.values()}) == 1
    assert len(catalog.models) == 4
    assert catalog.memory.host_bytes == 1 << 30
