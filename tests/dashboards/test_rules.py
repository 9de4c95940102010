"""The alert rules: well-formed, tested both ways by promtool, and each with a page that says what to do."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from inference_server.config.units import parse_duration
from tests.dashboards.promql import RULES, rules
from tests.fetched_tools import promtool

HERE = Path(__file__).parent
CASES = (HERE / "rules_test.yaml", HERE / "rules_days_test.yaml")
REPOSITORY = HERE.parents[1]
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
ALERTS = [rule for rule in rules() if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
LOOKBACK_S = 300  # how old a sample may be that Prometheus still answers with
HEADINGS = ("## What it means", "## What to look at", "## What to do")


def test_promtool_reads_the_rules() -> None:
    checked = promtool("check", "rules", *map(str, RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_when_it_should_and_keeps_still_when_it_should() -> None:
    tested = promtool("test", "rules", *map(str, CASES))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_no_alert_is_without_a_case_of_either_kind() -> None:
    fires: dict[str, set[bool]] = defaultdict(set)
    for file in CASES:
        for case in yaml.safe_load(file.read_text("utf-8"))["tests"]:
            for test in case["alert_rule_test"]:
                fires[test["alertname"]].add(bool(test["exp_alerts"]))
    assert dict(fires) == {name: {True, False} for name in NAMES}


def test_one_missed_evaluation_leaves_no_gap_in_what_is_recorded() -> None:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text("utf-8"))["groups"]]
    intervals_s = [parse_duration(group["interval"]) or 0.0 for group in groups if "interval" in group]
    assert intervals_s
    assert max(intervals_s) * 2 < LOOKBACK_S


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_urgent_it_is_and_where_its_page_is(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_the_alert_means_what_to_look_at_and_what_to_do(name: str) -> None:
    lines = (RUNBOOKS / f"{name}.md").read_text("utf-8").splitlines()
    assert lines[0] == f"# {name}"
    assert tuple(line for line in lines if line.startswith("## ")) == HEADINGS


def test_there_is_no_page_without_an_alert() -> None:
    assert sorted(page.stem for page in RUNBOOKS.glob("*.md") if page.stem != "README") == NAMES
