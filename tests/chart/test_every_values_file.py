"""Each values file renders to objects that clusters take, and misspelt objects would be found."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from tests.chart.helm import KUBERNETES, VALUES_FILES, Helm, Object, Releases
from tests.chart.schemas import Kubernetes, custom_resource_faults, is_built_in

CUSTOM_KINDS = {
    "HTTPRoute",
    "InferencePool",
    "PodMonitor",
    "PrometheusRule",
    "ScaledObject",
    "ServiceMonitor",
    "VerticalPodAutoscaler",
}


@pytest.fixture(scope="module")
def kubernetes(tools: Path) -> Iterator[Kubernetes]:
    """Schemas of several versions."""
    schemas = Kubernetes(tools)
    yield schemas
    schemas.close()


def test_there_are_values_files_for_what_the_chart_can_do() -> None:
    assert len(VALUES_FILES) >= 25


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(releases: Releases, kubernetes: Kubernetes, version: str) -> None:
    faults = {name: kubernetes.faults(release, version) for name, release in releases.items()}
    assert {name: found for name, found in faults.items() if found} == {}


def test_custom_resources_are_what_their_projects_define(releases: Releases, tools: Path) -> None:
    custom = [one for release in releases.values() for one in release if not is_built_in(one)]
    assert {one["kind"] for one in custom} >= CUSTOM_KINDS
    assert custom_resource_faults(tools, custom) == []


def test_names_and_namespaces_are_right_in_every_object(releases: Releases) -> None:
    for name, release in releases.items():
        identities = [(one["kind"], one["metadata"]["name"]) for one in release]
        assert len(set(identities)) == len(identities), f"{name}: one object twice"
        assert all(len(one) <= 63 for _, one in identities)
        extra = [one for one in release if "labels" not in one["metadata"]]
        namespaces = {one["metadata"]["namespace"] for one in release if one not in extra}
        assert namespaces == {"models"}
        assert not extra or name == "extras"


def test_a_misspelt_field_is_found_in_every_kind(
    releases: Releases, kubernetes: Kubernetes, tools: Path
) -> None:
    kinds = {one["kind"]: one for release in releases.values() for one in release if "spec" in one}
    assert kinds.keys() >= CUSTOM_KINDS | {"Deployment", "Service", "Ingress", "NetworkPolicy", "Pod"}
    misspelt = [_misspelt(one) for one in kinds.values()]
    custom = [one for one in misspelt if not is_built_in(one)]
    assert len(custom_resource_faults(tools, custom)) == len(custom)
    for one in misspelt:
        if is_built_in(one):
            assert kubernetes.faults([one], "1.34") != [], one["kind"]


def _misspelt(one: Object) -> Object:
    changed = deepcopy(one)
    changed["spec"]["sellector"] = {}
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("file", VALUES_FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("version", KUBERNETES)
def test_both_helms_agree_for_every_version_of_kubernetes(
    helm: Helm, helm_3: Helm, kubernetes: Kubernetes, file: Path, version: str
) -> None:
    release = helm_3.release(file, kubernetes=version)
    assert release == helm.release(file, kubernetes=version)
    assert kubernetes.faults(release, version) == []
