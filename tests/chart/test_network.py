"""Who reaches the pods: service, ingress, routes, the inference pool, network policy and scrapes."""

from __future__ import annotations

import pytest
import yaml

from tests.chart.helm import Object, Releases


def selected(selector: Object, release_labels: Object) -> bool:
    """Whether a selector of labels matches."""
    return selector.items() <= release_labels.items()


def test_the_service_selects_servers_and_nothing_else_of_the_release(releases: Releases) -> None:
    release = releases["everything"]
    selector = release.one("Service")["spec"]["selector"]
    labels = {
        component: release.one("Deployment", component)["spec"]["template"]["metadata"]["labels"]
        for component in ("server", "picker")
    }
    assert selected(selector, labels["server"])
    assert not selected(selector, labels["picker"])
    assert not selected(selector, release.one("Pod", "test")["metadata"]["labels"])
    assert selected(release.one("Service", "picker")["spec"]["selector"], labels["picker"])
    assert not selected(release.one("Service", "picker")["spec"]["selector"], labels["server"])


def test_ports_fit_together(releases: Releases) -> None:
    release = releases["ipv6"]
    (port,) = release.one("Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (443, "http")
    assert release.container["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    assert {"--host=::", "--port=8080"} <= set(release.container["args"])
    assert release.one("Service")["metadata"]["name"] == "llm-production"


def test_an_ingress_leaves_streams_unbuffered_and_open(releases: Releases) -> None:
    release = releases["ingress"]
    ingress = release.one("Ingress")
    prefix = "nginx.ingress.kubernetes.io"
    annotations = ingress["metadata"]["annotations"]
    assert annotations[f"{prefix}/proxy-buffering"] == "off"
    assert int(annotations[f"{prefix}/proxy-read-timeout"]) >= 3600
    assert ingress["spec"]["tls"] == [{"hosts": ["llm.example.com"], "secretName": "llm-tls"}]
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["llm.example.com", "*.llm.example.com"]
    for rule in ingress["spec"]["rules"]:
        backend = rule["http"]["paths"][0]["backend"]["service"]
        assert backend == {"name": release.one("Service")["metadata"]["name"], "port": {"name": "http"}}


@pytest.mark.parametrize(
    ("file", "backend"),
    [
        ("httproute", {"name": "demo-helixflow", "port": 8080}),
        (
            "inferencepool",
            {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "demo-helixflow"},
        ),
    ],
)
def test_a_route_goes_to_the_pool_if_there_is_one(releases: Releases, file: str, backend: Object) -> None:
    (rule,) = releases[file].one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [backend]
    assert rule["timeouts"]["request"] == rule["timeouts"]["backendRequest"]


def test_the_pool_holds_the_servers_and_asks_the_picker(releases: Releases) -> None:
    release = releases["inferencepool"]
    pool = release.one("InferencePool")["spec"]
    assert pool["selector"]["matchLabels"] == release.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert pool["targetPorts"] == [{"number": 8000}]
    service = release.one("Service", "picker")
    assert pool["endpointPickerRef"]["name"] == service["metadata"]["name"]
    assert pool["endpointPickerRef"]["port"]["number"] == service["spec"]["ports"][0]["port"]


def test_the_picker_prefers_pods_that_hold_the_model(releases: Releases) -> None:
    release = releases["inferencepool"]
    (container,) = release.one("Deployment", "picker")["spec"]["template"]["spec"]["containers"]
    assert "--model-server-metrics-path=/metrics/epp" in container["args"]
    assert "--pool-name=demo-helixflow" in container["args"]
    config = yaml.safe_load(release.one("ConfigMap", "picker")["data"]["picker.yaml"])
    (profile,) = config["schedulingProfiles"]
    weights = {one["pluginRef"]: one.get("weight", 0) for one in profile["plugins"]}
    assert max(weights, key=lambda name: weights[name]) == "lora-affinity-scorer"
    assert {one["type"] for one in config["plugins"]} == weights.keys() | {"single-profile-handler"}


def test_a_picker_of_ones_own_is_named(releases: Releases) -> None:
    release = releases["inferencepool-own-picker"]
    assert release.one("InferencePool")["spec"]["endpointPickerRef"]["name"] == "shared-picker"
    assert release.all("Deployment", "picker") == []


def test_a_network_policy_lets_in_who_is_named_and_the_release_itself(releases: Releases) -> None:
    policy = releases["network-policy"].one("NetworkPolicy")["spec"]
    (rule,) = policy["ingress"]
    namespaces = [
        one["namespaceSelector"]["matchLabels"] for one in rule["from"] if "namespaceSelector" in one
    ]
    assert [one["kubernetes.io/metadata.name"] for one in namespaces] == ["ingress-nginx", "monitoring"]
    assert {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "demo"}}} in rule["from"]
    ports = [port["port"] for one in policy["egress"] for port in one["ports"]]
    assert ports == [53, 53, 3128]
    everybody = releases["network-policy-open"].one("NetworkPolicy")["spec"]
    assert "from" not in everybody["ingress"][0]
    assert [port["port"] for one in everybody["egress"] for port in one["ports"]] == [53, 53, 443]


def test_scrapes_find_the_servers(releases: Releases) -> None:
    release = releases["pod-monitor"]
    monitor = release.one("PodMonitor")
    labels = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selected(monitor["spec"]["selector"]["matchLabels"], labels)
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics", "interval": "5s"}]
    release = releases["monitoring"]
    monitor = release.one("ServiceMonitor")
    assert selected(monitor["spec"]["selector"]["matchLabels"], release.one("Service")["metadata"]["labels"])
    assert monitor["spec"]["endpoints"][0]["path"] == "/metrics"
