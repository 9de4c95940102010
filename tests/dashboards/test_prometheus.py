"""The whole way: servers under load, a real Prometheus that scrapes them, and every panel's queries."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from scripts.dashboards.models import STATES
from tests.dashboards.load import TALKERS, leave_early, sleep_and_wake, used_server
from tests.dashboards.promql import Asked, asked_by_dashboards, asked_by_rules
from tests.dashboards.running_prometheus import JOB, RunningPrometheus, running_prometheus
from tests.demo import demo_folder
from tests.server.running import RunningServer, running_server

pytestmark = [pytest.mark.slow, pytest.mark.model]

LOAD_S = 30.0
WINDOW_S = 20  # what panels look at; some scrapes after the beginning, so that rates have two
# Weights, a plan in bytes, and guesses: what no scripted model has.
DEMO = (
    "models: {{demo: {{source: {folder}, speculation: prompt-lookup, max_model_len: 1024, preload: true}}}}\n"
)
REPETITIVE = "Say it again, word for word: one two three four, one two three four, one two three four"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPrometheus]:
    """A Prometheus that has watched two servers for half a minute."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "demo.yaml"
    config.write_text(DEMO.format(folder=demo_folder()), encoding="utf-8")
    with running_server(config) as demo, used_server(folder) as scripted:
        targets = [f"127.0.0.1:{server.port}" for server in (demo, scripted)]
        with running_prometheus(folder, targets) as running:
            put_under_load(demo, scripted)
            yield running


def put_under_load(demo: RunningServer, scripted: RunningServer) -> None:
    """Everything again and again: answers, swaps, sleeps, faults, and clients that leave."""
    ends_s = time.monotonic() + LOAD_S
    while time.monotonic() < ends_s:
        assert demo.chat(REPETITIVE, model="demo", max_tokens=24).status_code == 200
        for model in ("one", "two", "three", "one"):
            assert scripted.chat("hello", model=model).status_code == 200
        sleep_and_wake(scripted, "one")
        leave_early(scripted, "one")
        assert scripted.chat("fault:error:decode", model="one").status_code == 500


@pytest.mark.parametrize("asked", list(asked_by_dashboards()), ids=lambda asked: asked.where)
def test_every_query_of_every_panel_returns_data(prometheus: RunningPrometheus, asked: Asked) -> None:
    assert prometheus.finite_values(asked.filled(window="10s", job=JOB), WINDOW_S)


def test_a_query_for_what_is_not_there_returns_none(prometheus: RunningPrometheus) -> None:
    (asked, *_) = asked_by_dashboards()
    assert prometheus.finite_values(asked.filled(window="10s", job="another"), WINDOW_S) == []


def test_the_timeline_shows_each_models_state_by_its_number(prometheus: RunningPrometheus) -> None:
    (timeline,) = (asked for asked in asked_by_dashboards() if "Who is in memory" in asked.where)
    number_of = {state: number for number, (state, _) in enumerate(STATES, start=1)}

    def numbers(model: str) -> set[float]:
        expr = timeline.filled(window="10s", job=JOB, model=model)
        return set(prometheus.finite_values(expr, WINDOW_S))

    assert numbers("demo") == {number_of["ready"]}
    assert numbers("broken") == {number_of["failed"]}
    those_that_take_turns = numbers("|".join(TALKERS))
    assert those_that_take_turns <= {0.0, *map(float, number_of.values())}
    assert len(those_that_take_turns) > 1


def test_prometheus_has_scraped_and_reckoned_without_an_error(prometheus: RunningPrometheus) -> None:
    targets = prometheus.get("/api/v1/targets")["activeTargets"]
    assert [target["health"] for target in targets] == ["up", "up"]
    assert {target["lastError"] for target in targets} == {""}
    rules = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len([*asked_by_rules()])
    assert {(rule["name"], rule["health"]) for rule in rules if rule["health"] != "ok"} == set()


def test_what_failed_under_the_load_is_on_its_way_to_an_alert(prometheus: RunningPrometheus) -> None:
    alerts = prometheus.get("/api/v1/alerts")["alerts"]
    under_way = {(alert["labels"]["alertname"], alert["labels"].get("model")) for alert in alerts}
    assert ("HelixFlowHighErrorRate", "one") in under_way
    assert ("HelixFlowModelLoadFailing", "broken") not in under_way  # it failed before the first scrape
