"""How many pods there are, who decides it, and who may take them away."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.chart.helm import CHART, Helm, Object, Releases
from tests.fetched_tools import promtool


def test_nobody_scales_unless_asked(helm: Helm) -> None:
    release = helm.release(replicas=3)
    assert release.one("Deployment")["spec"]["replicas"] == 3
    assert release.all("HorizontalPodAutoscaler") == release.all("ScaledObject") == []
    assert release.all("VerticalPodAutoscaler") == []


def test_whoever_scales_owns_the_number_of_pods(releases: Releases) -> None:
    for name, kind in (("keda", "ScaledObject"), ("hpa", "HorizontalPodAutoscaler")):
        release = releases[name]
        assert "replicas" not in release.one("Deployment")["spec"]
        reference = release.one(kind)["spec"]["scaleTargetRef"]
        deployment = release.one("Deployment")
        assert reference["name"] == deployment["metadata"]["name"]
        assert (reference["apiVersion"], reference["kind"]) == (deployment["apiVersion"], "Deployment")


def test_keda_and_hpa_are_never_together(releases: Releases) -> None:
    for release in releases.values():
        assert not (release.all("ScaledObject") and release.all("HorizontalPodAutoscaler"))


def test_keda_counts_the_waiting_requests_of_this_release(releases: Releases) -> None:
    scaled = releases["keda"].one("ScaledObject")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 8)
    (trigger,) = scaled["triggers"]
    query = 'sum(vllm:num_requests_waiting{namespace="models",pod=~"demo-helixflow-.*"})'
    assert trigger["metadata"]["query"] == query
    assert trigger["metadata"]["threshold"] == "5"
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_keda_shows_prometheus_what_the_authentication_holds(helm: Helm, releases: Releases) -> None:
    """Without authModes in the trigger KEDA sends nothing of it."""
    (trigger,) = releases["keda"].one("ScaledObject")["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "prometheus"}
    assert trigger["metadata"]["authModes"] == "tls,basic"
    identity = {"enabled": True, "authenticationRef": "azure", "authModes": ""}
    for keda in ({"enabled": True}, identity):
        scaled = helm.release(autoscaling={"keda": keda}).one("ScaledObject")["spec"]
        assert "authModes" not in scaled["triggers"][0]["metadata"]


def test_pods_stay_while_prometheus_fails_or_knows_nothing(helm: Helm, releases: Releases) -> None:
    """A fallback may take pods away; without one the autoscaler keeps them when KEDA reports an error."""
    scaled = helm.release(autoscaling={"keda": {"enabled": True}}).one("ScaledObject")["spec"]
    assert "fallback" not in scaled
    assert scaled["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
    scaled = releases["keda"].one("ScaledObject")["spec"]
    assert scaled["fallback"] == {"failureThreshold": 3, "replicas": 6}


def test_keda_can_go_to_zero_with_a_query_of_ones_own(releases: Releases) -> None:
    scaled = releases["keda-zero"].one("ScaledObject")["spec"]
    assert scaled["minReplicaCount"] == 0
    assert "envoy_cluster_upstream_rq_total" in scaled["triggers"][0]["metadata"]["query"]
    assert "fallback" not in scaled
    assert "advanced" not in scaled


def test_an_hpa_takes_all_kinds_of_metrics(releases: Releases) -> None:
    hpa = releases["hpa-metrics-of-all-kinds"].one("HorizontalPodAutoscaler")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (5, 100)
    by_type = {(one["type"], one.get("resource", {}).get("name")): one for one in hpa["metrics"]}
    assert by_type["Resource", "cpu"]["resource"]["target"]["averageUtilization"] == 70
    assert by_type["Resource", "memory"]["resource"]["target"]["averageUtilization"] == 80
    pods = by_type["Pods", None]["pods"]
    assert pods == {
        "metric": {"name": "http_requests_per_second"},
        "target": {"type": "AverageValue", "averageValue": "2000"},
    }
    external = by_type["External", None]["external"]
    assert external["metric"]["name"] == "cloudwatch.aws.com/request_count"
    assert external["metric"]["selector"] == {"matchLabels": {"service": "helixflow"}}
    assert external["target"] == {"type": "Value", "value": "10000"}
    assert hpa["behavior"]["scaleUp"]["policies"][1] == {"type": "Pods", "value": 10, "periodSeconds": 60}


def test_the_adapters_rule_makes_the_metric_that_an_hpa_asks_for(releases: Releases) -> None:
    values = yaml.safe_load((CHART / "files" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = values["rules"]["custom"]
    series = rule["seriesQuery"].partition("{")[0]
    assert series in releases["keda"].one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    (metric,) = releases["hpa"].one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert re.sub(rule["name"]["matches"], rule["name"]["as"], series) == metric["pods"]["metric"]["name"]


def test_the_adapters_query_is_one(tmp_path: Path) -> None:
    """With what prometheus-adapter puts in place of its marks when it asks about the pods of a Deployment."""
    values = yaml.safe_load((CHART / "files" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = values["rules"]["custom"]
    marks = {
        "<<.Series>>": "vllm:num_requests_waiting",
        "<<.LabelMatchers>>": 'namespace="models",pod=~"demo-1|demo-2"',
        "<<.GroupBy>>": "pod",
    }
    query = re.sub("<<.*?>>", lambda found: marks[found[0]], rule["metricsQuery"])
    expressions = [{"record": "x", "expr": one} for one in (query, rule["seriesQuery"])]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": expressions}]}))
    done = promtool("check", "rules", "--lint=none", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_vertical_autoscaler_only_recommends_unless_told_otherwise(releases: Releases) -> None:
    vpa = releases["vpa"].one("VerticalPodAutoscaler")["spec"]
    assert vpa["updatePolicy"] == {"updateMode": "Off"}
    (policy,) = vpa["resourcePolicy"]["containerPolicies"]
    assert policy["containerName"] == "helixflow"
    assert policy["maxAllowed"] == {"cpu": "16", "memory": "64Gi"}


def test_the_cluster_autoscaler_leaves_loaded_pods_alone(releases: Releases) -> None:
    def annotation(name: str) -> str:
        pod = releases[name].one("Deployment")["spec"]["template"]
        text: str = pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"]
        return text

    assert annotation("default") == "false"
    assert annotation("vpa") == "true"


def test_a_budget_lets_drains_take_one_of_several_pods_at_a_time(helm: Helm, releases: Releases) -> None:
    for file, allowed in (("gpu-many", "25%"), ("keda", 1), ("hpa", 1)):
        release = releases[file]
        budget = release.one("PodDisruptionBudget")["spec"]
        assert budget["maxUnavailable"] == allowed
        assert budget["selector"] == release.one("Deployment")["spec"]["selector"]
    single: list[Object] = [
        {},
        {"replicas": 2, "podDisruptionBudget": {"enabled": False}},
        {"autoscaling": {"keda": {"enabled": True}, "maxReplicas": 1}},
    ]
    for values in single:
        assert helm.release(**values).all("PodDisruptionBudget") == []
