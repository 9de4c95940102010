"""Alerts and dashboards arrive in the cluster as they lie in the chart."""

from __future__ import annotations

import json

import yaml

from tests.chart.helm import CHART, REPOSITORY, Helm, Releases

# What is the release's own in the rules, as they lie in the chart and as they come out.
PUT_IN = {
    "docs/runbooks/": "https://wiki.example.com/helixflow/",
    'job=~".*helixflow.*"': 'namespace="models", job=~"(models/)?demo-helixflow"',
    'deployment=~".*helixflow"': 'namespace="models", deployment="demo-helixflow"',
}


def test_every_rule_file_is_an_object_with_its_groups(releases: Releases) -> None:
    rules = {one["metadata"]["name"]: one for one in releases["monitoring"].all("PrometheusRule")}
    files = list((CHART / "rules").glob("*.yaml"))
    assert len(rules) == len(files) > 0
    for file in files:
        one = rules[f"demo-helixflow-{file.stem}"]
        text = file.read_text(encoding="utf-8")
        for by_hand, put_in in PUT_IN.items():
            text = text.replace(by_hand, put_in)
        assert one["spec"] == yaml.safe_load(text)
        names = [group["name"] for group in one["spec"]["groups"]]
        assert len(set(names)) == len(names)  # a cluster refuses an object with two groups of one name
        assert one["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_alerts_about_targets_and_pods_are_about_the_releases_own_whatever_it_is_called(helm: Helm) -> None:
    release = helm.release(fullnameOverride="llm", monitoring={"rules": {"enabled": True}})
    (alerts,) = (one for one in release.all("PrometheusRule") if one["metadata"]["name"] == "llm-alerts")
    asked = [rule["expr"] for group in alerts["spec"]["groups"] for rule in group["rules"]]
    assert release.one("Deployment")["metadata"]["name"] == "llm"
    assert sum('{namespace="models", deployment="llm"}' in expr for expr in asked) == 1
    assert sum('{namespace="models", job=~"(models/)?llm"}' in expr for expr in asked) == 1
    assert not any('helixflow"' in expr or "helixflow.*" in expr for expr in asked)


def test_every_dashboard_is_a_configmap_that_the_sidecar_finds(releases: Releases) -> None:
    maps = {
        one["metadata"]["name"]: one
        for one in releases["monitoring"].all("ConfigMap")
        if "grafana_dashboard" in one["metadata"]["labels"]
    }
    files = list((CHART / "dashboards").glob("*.json"))
    assert len(maps) == len(files) > 0
    for file in files:
        one = maps[f"demo-helixflow-dashboard-{file.stem}"]
        text = one["data"][f"helixflow-{file.name}"]
        assert json.loads(text) == json.loads(file.read_text(encoding="utf-8"))
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert one["metadata"]["annotations"] == {"grafana_folder": "HelixFlow"}


def test_alerts_name_pages_that_exist(releases: Releases) -> None:
    rules = releases["everything"].all("PrometheusRule")
    alerts = [
        rule for one in rules for group in one["spec"]["groups"] for rule in group["rules"] if "alert" in rule
    ]
    assert len(alerts) > 5
    for alert in alerts:
        assert (REPOSITORY / alert["annotations"]["runbook_url"]).exists()


def test_nothing_is_there_unless_asked_for(releases: Releases) -> None:
    release = releases["default"]
    assert release.all("PrometheusRule") == release.all("PodMonitor") == release.all("ServiceMonitor") == []
    assert len(release.all("ConfigMap")) == 1
