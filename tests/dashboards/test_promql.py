"""Every expression is PromQL, and every metric that it names is on a live server's page."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.dashboards.promql import (
    KUBERNETES_SERIES,
    OWN_SERIES,
    Asked,
    asked_by_dashboards,
    asked_by_rules,
    metrics_in,
    recorded,
)
from tests.fetched_tools import promtool

ASKED = [*asked_by_dashboards(), *asked_by_rules()]


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        (
            'sum by (le, model) (rate(vllm:x_bucket{job=~"$job", le="2.5"}[$__rate_interval])) > 0.5',
            {"vllm:x_bucket"},
        ),
        ("up == 0 and on (job) last_over_time(a_b[1h]) or vector(0)", {"up", "a_b"}),
        ("histogram_quantile(0.95, sum(a)) / 1e3 > bool job:b:c5m", {"a", "job:b:c5m"}),
        ('count(ALERTS{alertname=~"{up}"}) unless d offset 5m', {"ALERTS", "d"}),
    ],
)
def test_the_metrics_of_an_expression_are_found(expr: str, names: set[str]) -> None:
    assert metrics_in(expr) - {"5m"} == names


def test_prometheus_reads_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    made_rules = [
        {"record": f"panel:{number}", "expr": asked.filled(window="5m")}
        for number, asked in enumerate(asked_by_dashboards())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made_rules}]}), encoding="utf-8")
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(made_rules)} rules found" in checked.stdout


@pytest.fixture(scope="module")
def served(page: str) -> set[str]:
    """Every name that the live server's samples have, and those that are declared without one."""
    families = list(text_string_to_metric_families(page))
    return {sample.name for family in families for sample in family.samples} | {
        family.name for family in families if family.type == "gauge"
    }


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.where)
def test_every_metric_that_is_asked_for_is_served_or_recorded(asked: Asked, served: set[str]) -> None:
    names = metrics_in(asked.expr)
    assert names
    assert names <= served | recorded() | OWN_SERIES | KUBERNETES_SERIES


def test_nothing_is_recorded_that_nobody_reads() -> None:
    read = {name for asked in ASKED for name in metrics_in(asked.expr)}
    assert recorded() - read == {"model:helixflow_requests:rate5m"}  # for people's own panels
