"""Values that the chart refuses, and where helm says they are wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.chart.helm import CHART, Helm, Object, RefusedError

SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())
# Objects that mirror one of Kubernetes', of which values.yaml sets a part.
OPTIONAL_INSIDE = {".resources", ".inferencePool.picker.resources", ".strategy", ".autoscaling.behavior"}
# What Kubernetes alone checks.
FREE_FORM = {"podSecurityContext", "securityContext", "resources"}

# values that a schema rule refuses -> the place that helm 4 names
REFUSED: list[tuple[str, str]] = [
    ("replicaCount: 2", ""),
    ("replicas: -1", "/replicas"),
    ("replicas: two", "/replicas"),
    ("nameOverride: Capital", "/nameOverride"),
    ("fullnameOverride: -x", "/fullnameOverride"),
    ("commonLabels: {app.kubernetes.io/name: mine}", ""),
    ("podLabels: {team: 'two words'}", "/podLabels/team"),
    ("image: {repository: ''}", "/image/repository"),
    ("image: {repository: null}", "/image"),
    ("image: {tag: 'a b'}", "/image/tag"),
    ("image: {digest: 'sha256:12'}", "/image/digest"),
    ("image: {pullPolicy: Sometimes}", "/image/pullPolicy"),
    ("imagePullSecrets: [login]", "/imagePullSecrets/0"),
    ("minReadySeconds: -1", "/minReadySeconds"),
    ("strategy: {type: BlueGreen}", "/strategy/type"),
    ("strategy: {rollingUpdate: {maxSurge: '1000%'}}", "/strategy/rollingUpdate/maxSurge"),
    ("gpu: {cout: 1}", "/gpu"),
    ("gpu: {count: 0}", "/gpu/count"),
    ("gpu: {resource: gpu}", "/gpu/resource"),
    ("resources: {limits: {memory: lots}}", "/resources/limits/memory"),
    ("server: {host: 127.0.0.1}", "/server/host"),
    ("server: {port: 80}", "/server/port"),
    ("server: {logLevel: loud}", "/server/logLevel"),
    ("server: {extraArgs: [--port=1]}", "/server/extraArgs/0"),
    ("server: {extraArgs: [--ssl-keyfile=x]}", "/server/extraArgs/0"),
    ("server: {extraArgs: [serve]}", "/server/extraArgs/0"),
    ("config: {modells: {}}", "/config"),
    ("config: {models: {}}", "/config/models"),
    ("config: {server: {port: 1}}", "/config/server"),
    ("config: {server: {ssl_keyfile: /k, ssl_certfile: /c}}", "/config/server"),  # probes speak no TLS
    ("config: {server: {api_key_file: /k}}", "/config/server"),
    ("config: {server: {insecure_no_auth: true}}", "/config/server"),
    ("auth: {apiKey: secret}", "/auth"),
    ("auth: {secretKey: 'a/b'}", "/auth/secretKey"),
    ("auth: {inferenceSecretKey: 'a/b'}", "/auth/inferenceSecretKey"),
    ("auth: {insecure: 'yes'}", "/auth/insecure"),
    ("auth: {existingSecret: '', keyFileSecret: ''}", "/auth"),
    ("auth: {insecure: true, keyFileSecret: keys}", "/auth/keyFileSecret"),
    ("huggingface: {token: hf_x}", "/huggingface"),
    ("cache: {sizeLimit: '1 GB'}", "/cache/sizeLimit"),
    ("cache: {persistence: {accessModes: []}}", "/cache/persistence/accessModes"),
    ("cache: {persistence: {accessModes: [ReadOnlyMany]}}", "/cache/persistence/accessModes/0"),
    ("shmSize: big", "/shmSize"),
    ("probes: {startup: {periodSeconds: 0}}", "/probes/startup/periodSeconds"),
    ("probes: {liveness: {path: /}}", "/probes/liveness"),
    ("service: {type: ExternalName}", "/service/type"),
    ("service: {port: 70000}", "/service/port"),
    ("service: {annotations: {a: 1}}", "/service/annotations/a"),
    ("affinity: {nodeAfinity: {}}", "/affinity"),
    ("topologySpreadConstraints: [{maxSkew: 1}]", "/topologySpreadConstraints/0"),
    ("podDisruptionBudget: {minAvailable: 1}", "/podDisruptionBudget"),
    ("autoscaling: {hpa: {enabled: true}, keda: {enabled: true}}", "/autoscaling/keda/enabled"),
    ("autoscaling: {hpa: {podMetrics: [{name: x}]}}", "/autoscaling/hpa/podMetrics/0"),
    (
        "autoscaling: {hpa: {externalMetrics: [{name: '', value: '1'}]}}",
        "/autoscaling/hpa/externalMetrics/0/name",
    ),
    ("autoscaling: {keda: {prometheusAddress: prometheus}}", "/autoscaling/keda/prometheusAddress"),
    ("autoscaling: {keda: {threshold: few}}", "/autoscaling/keda/threshold"),
    ("autoscaling: {keda: {authModes: password}}", "/autoscaling/keda/authModes"),
    ("autoscaling: {vpa: {updateMode: Now}}", "/autoscaling/vpa/updateMode"),
    ("autoscaling: {behavior: {scaleSideways: {}}}", "/autoscaling/behavior"),
    (
        "monitoring: {podMonitor: {enabled: true}, serviceMonitor: {enabled: true}}",
        "/monitoring/serviceMonitor/enabled",
    ),
    ("monitoring: {podMonitor: {interval: often}}", "/monitoring/podMonitor/interval"),
    ("monitoring: {rules: {runbooks: https://wiki.example.com}}", "/monitoring/rules/runbooks"),
    ("networkPolicy: {ingressFrom: {}}", "/networkPolicy/ingressFrom"),
    ("networkPolicy: {dnsPorts: [dns]}", "/networkPolicy/dnsPorts/0"),
    ("networkPolicy: {dnsPorts: []}", "/networkPolicy/dnsPorts"),
    ("ingress: {enabled: true}", "/ingress/hosts"),
    ("ingress: {hosts: [{host: a}]}", "/ingress/hosts/0"),
    ("ingress: {hosts: ['http://a']}", "/ingress/hosts/0"),
    ("httpRoute: {enabled: true}", "/httpRoute/parentRefs"),
    ("httpRoute: {timeout: 1 hour}", "/httpRoute/timeout"),
    ("extraPublicPaths: [models]", "/extraPublicPaths/0"),
    ("extraPublicPaths: ['/a//b']", "/extraPublicPaths/0"),
    ("extraPublicPaths: ['/a/../b']", "/extraPublicPaths/0"),
    ("extraPublicPaths: [/a, /b, /c, /d]", "/extraPublicPaths"),  # with ours more than a rule may have
    ("inferencePool: {paths: []}", "/inferencePool/paths"),
    ("inferencePool: {paths: [v1/]}", "/inferencePool/paths/0"),
    ("inferencePool: {failureMode: FailSoft}", "/inferencePool/failureMode"),
    ("inferencePool: {picker: {image: ''}}", "/inferencePool/picker/image"),
    ("inferencePool: {picker: {refreshInterval: fast}}", "/inferencePool/picker/refreshInterval"),
    ("extraEnv: [{value: x}]", "/extraEnv/0"),
    ("extraEnv: [{name: 'a-b'}]", "/extraEnv/0/name"),
    ("extraEnv: [{name: HELIXFLOW_SSL_CERTFILE, value: /c}]", "/extraEnv/0/name"),
    ("extraEnv: [{name: HELIXFLOW_PORT, value: '1'}]", "/extraEnv/0/name"),
    ("extraVolumes: [{emptyDir: {}}]", "/extraVolumes/0"),
    ("extraVolumeMounts: [{name: x}]", "/extraVolumeMounts/0"),
    ("sidecars: [{image: x}]", "/sidecars/0"),
    ("extraObjects: [1]", "/extraObjects/0"),
]

# values that only the templates can refuse, because they compare -> words of the message
COMPARED: list[tuple[str, str]] = [
    (
        "{server: {shutdownTimeoutSeconds: 60, preStopSeconds: 30}, terminationGracePeriodSeconds: 90}",
        "terminationGracePeriodSeconds (90) must be more than",
    ),
    ("{replicas: 2, cache: {persistence: {enabled: true}}}", "several pods need ReadWriteMany"),
    (
        "{replicas: 2, cache: {persistence: {enabled: true, existingClaim: mine}}}",
        "several pods need ReadWriteMany",
    ),
    ("autoscaling: {minReplicas: 5, maxReplicas: 4}", "autoscaling.minReplicas must not be more"),
    ("autoscaling: {minReplicas: 0, hpa: {enabled: true}}", "keeps at least 1 pod"),
    ("autoscaling: {minReplicas: 0, keda: {enabled: true}}", "nothing would ever start one"),
    ("autoscaling: {hpa: {enabled: true, podMetrics: []}}", "autoscaling.hpa: set one of"),
    ("inferencePool: {enabled: true, picker: {enabled: false}}", "inferencePool.picker.existingService"),
]


@pytest.mark.parametrize(("values", "place"), REFUSED, ids=[values for values, _ in REFUSED])
def test_the_schema_refuses(values: str, place: str) -> None:
    errors = Draft7Validator(SCHEMA).iter_errors(_merged(VALUES, yaml.safe_load(values)))
    found = {"/".join(("", *map(str, error.absolute_path))) for error in errors}
    assert place in found or {one.rpartition("/")[0] for one in found} == {place}


def _merged(defaults: Any, values: Any) -> Any:
    """What helm makes of values: maps are merged, null takes away, all else is replaced."""
    if not (isinstance(defaults, dict) and isinstance(values, dict)):
        return values
    names = [name for name in {**defaults, **values} if name not in values or values[name] is not None]
    return {
        name: _merged(defaults.get(name), values[name]) if name in values else defaults[name]
        for name in names
    }


@pytest.mark.slow
@pytest.mark.parametrize(("values", "place"), REFUSED, ids=[values for values, _ in REFUSED])
def test_helm_4_names_the_place_that_the_schema_refuses(helm: Helm, values: str, place: str) -> None:
    with pytest.raises(RefusedError) as refused:
        helm.release(**yaml.safe_load(values))
    assert f"- at '{place}'" in str(refused.value)
    assert "values don't meet the specifications of the schema" in str(refused.value)


def test_helm_reads_the_schema(helm: Helm) -> None:
    with pytest.raises(RefusedError, match="at '/gpu/count': minimum"):
        helm.release(gpu={"count": 0})


@pytest.mark.parametrize(("values", "words"), COMPARED, ids=[values for values, _ in COMPARED])
def test_the_templates_refuse(helm: Helm, values: str, words: str) -> None:
    with pytest.raises(RefusedError, match="execution error") as refused:
        helm.release(**yaml.safe_load(values))
    assert words in str(refused.value)


def test_every_place_refuses_what_is_of_the_wrong_kind_or_has_an_unknown_name() -> None:
    rules = Draft7Validator(SCHEMA)
    assert rules.is_valid(VALUES)
    places = [place for place in _leaves(VALUES) if place[0] not in FREE_FORM]
    assert len(places) > 120
    for place in places:
        assert not rules.is_valid(_with(VALUES, place, [["no such value"]])), place
        assert not rules.is_valid(_with(VALUES, (*place[:-1], "noSuchName"), True)), place


def _leaves(values: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _leaves(value, (*place, name))
    else:
        yield place


def _with(values: Any, place: tuple[str, ...], value: Any) -> Any:
    if not place:
        return value
    return {**values, place[0]: _with(values.get(place[0], {}), place[1:], value)}


@pytest.mark.slow
@pytest.mark.parametrize("values", [values for values, _ in REFUSED + COMPARED])
def test_helm_3_refuses_too(helm_3: Helm, values: str) -> None:
    with pytest.raises(RefusedError):
        helm_3.release(**yaml.safe_load(values))


def test_a_setting_is_refused_as_a_flag_a_variable_or_a_key_of_the_server_section() -> None:
    """Whatever the chart itself sets, or its probes could not cope with."""
    places = SCHEMA["properties"]
    flags, variables = (
        rule["not"]["pattern"]
        for rule in (
            places["server"]["properties"]["extraArgs"]["items"],
            places["extraEnv"]["items"]["properties"]["name"],
        )
    )
    keys = places["config"]["properties"]["server"]["not"]["anyOf"]
    settings = {key for rule in keys for key in rule["required"]}
    assert "ssl_keyfile" in settings
    for setting in settings:
        assert re.search(flags, f"--{setting.replace('_', '-')}=x")
        assert re.search(variables, f"HELIXFLOW_{setting.upper()}")


def test_every_value_has_a_rule_and_every_rule_a_value() -> None:
    """Helm's own `global` apart, which a parent chart may set."""
    assert set(_places(VALUES, SCHEMA)) == set()


def _places(values: Any, rule: Object, place: str = "") -> Iterator[str]:
    """Where values.yaml and a strict object of the schema name different things."""
    if rule.get("additionalProperties") is not False or not values:
        return
    named = rule["properties"].keys() - {"global"}
    if place in OPTIONAL_INSIDE:
        named = named & values.keys()
    yield from (f"{place}.{name}" for name in named ^ values.keys())
    for name in named & values.keys():
        yield from _places(values[name], rule["properties"][name], f"{place}.{name}")
