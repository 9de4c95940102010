"""Who reaches the pods: service, ingress, routes, the inference pool, network policy and scrapes."""

from __future__ import annotations

import yaml

from tests.chart.helm import REPOSITORY, Helm, Object, Releases

POOL = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "demo-helixflow"}


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
        for path in rule["http"]["paths"]:
            service = {"name": release.one("Service")["metadata"]["name"], "port": {"name": "http"}}
            assert path["backend"]["service"] == service


def published_by_envoy() -> set[tuple[str, bool]]:
    """The paths that deploy/envoy publishes, and whether each is the beginning of many."""
    config = yaml.safe_load((REPOSITORY / "deploy" / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    (host,) = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    matches = [route["match"] for route in host["routes"]]
    return {(match.get("prefix") or match["path"], "prefix" in match) for match in matches}


def published_by_ingress(ingress: Object) -> set[tuple[str, bool]]:
    """The same of every host of an Ingress."""
    paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    assert {path["pathType"] for path in paths} <= {"Exact", "Prefix"}
    return {(path["path"], path["pathType"] == "Prefix") for path in paths}


def published_by_rule(rule: Object) -> set[tuple[str, bool]]:
    """The same of a rule of an HTTPRoute."""
    paths = [match["path"] for match in rule["matches"]]
    assert {path["type"] for path in paths} <= {"Exact", "PathPrefix"}
    return {(path["value"], path["type"] == "PathPrefix") for path in paths}


def test_what_is_about_one_pod_is_not_published(releases: Releases) -> None:
    """/metrics tells the names of models to whoever asks, and /models/unload would reach any pod."""
    public = published_by_envoy()
    assert len(public) == 5
    assert not any(path in "/metrics /models/load /health" for path, _ in public)
    assert published_by_ingress(releases["everything"].one("Ingress")) == public
    assert published_by_rule(releases["httproute"].one("HTTPRoute")["spec"]["rules"][-1]) == public


def test_more_can_be_published(helm: Helm, releases: Releases) -> None:
    public = published_by_envoy() | {("/models/", True), ("/version", False)}
    assert published_by_ingress(releases["ingress"].one("Ingress")) == public
    route = {"enabled": True, "parentRefs": [{"name": "public"}]}
    release = helm.release(extraPublicPaths=["/models/", "/version"], httpRoute=route)
    (rule,) = release.one("HTTPRoute")["spec"]["rules"]
    assert published_by_rule(rule) == public


def test_a_route_goes_to_the_service(releases: Releases) -> None:
    (rule,) = releases["httproute"].one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "demo-helixflow", "port": 8080}]
    assert rule["timeouts"] == {"request": "30m", "backendRequest": "30m"}


def test_the_pool_gets_only_requests_that_its_picker_can_read(releases: Releases) -> None:
    """The picker answers 400 to every POST that is neither a chat nor a completion."""
    to_pool, to_service = releases["inferencepool"].one("HTTPRoute")["spec"]["rules"]
    assert to_pool["backendRefs"] == [POOL]
    assert published_by_rule(to_pool) == {
        (f"{prefix}/{path}", False)
        for prefix in ("/v1", "/api/v1")
        for path in ("chat/completions", "completions")
    }
    assert to_service["backendRefs"] == [{"name": "demo-helixflow", "port": 80}]
    assert published_by_rule(to_service) == published_by_envoy()
    assert to_pool["timeouts"] == to_service["timeouts"] == {"request": "1h", "backendRequest": "1h"}


def test_a_newer_picker_may_be_asked_about_more(helm: Helm) -> None:
    release = helm.release(
        inferencePool={"enabled": True, "paths": ["/v1/embeddings", "/v1/messages/"]},
        httpRoute={"enabled": True, "parentRefs": [{"name": "public"}]},
    )
    to_pool, _ = release.one("HTTPRoute")["spec"]["rules"]
    assert published_by_rule(to_pool) == {("/v1/embeddings", False), ("/v1/messages/", True)}


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
    assert ports == [53, 53, 5353, 5353, 3128]
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
