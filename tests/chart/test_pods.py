"""The server's pods: hardened, placed, with their volumes, keys and probes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chart.helm import Helm, Object, Release, Releases


def test_every_container_of_ours_is_hardened(releases: Releases) -> None:
    release = releases["everything"]
    specs = [one["spec"]["template"]["spec"] for one in release if one["kind"] == "Deployment"]
    specs += [one["spec"] for one in release if one["kind"] == "Pod"]
    assert len(specs) == 3  # server, endpoint picker, test
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] >= 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_only_the_endpoint_picker_gets_a_token_of_the_cluster(releases: Releases) -> None:
    release = releases["inferencepool"]
    assert release.pod["automountServiceAccountToken"] is False
    picker = release.one("Deployment", "picker")["spec"]["template"]["spec"]
    assert picker["automountServiceAccountToken"] is True
    assert picker["serviceAccountName"] == release.one("ServiceAccount", "picker")["metadata"]["name"]


def test_everything_that_is_written_lies_on_a_volume(helm: Helm) -> None:
    release = helm.release()
    writable = [
        mount["mountPath"] for mount in release.container["volumeMounts"] if not mount.get("readOnly")
    ]
    assert writable == ["/cache", "/tmp", "/home/helixflow", "/dev/shm"]
    folders = {one["name"]: one.get("value", "") for one in release.container["env"]}
    for name in (
        "HELIXFLOW_CACHE",
        "HF_HOME",
        "NUMBA_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
    ):
        assert folders[name].startswith("/cache/")
    assert folders["HOME"] in writable


def test_a_gpu_stands_in_requests_and_limits_with_its_toleration(releases: Releases) -> None:
    release = releases["gpu-mig"]
    resources = release.container["resources"]
    assert resources["requests"] == {"cpu": "4", "memory": "32Gi", "nvidia.com/mig-3g.40gb": 1}
    assert resources["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/mig-3g.40gb": 1}
    toleration = {"key": "nvidia.com/mig-3g.40gb", "operator": "Exists", "effect": "NoSchedule"}
    assert toleration in release.pod["tolerations"]


def test_a_slice_of_a_gpu_tolerates_the_taint_of_whole_ones(releases: Releases) -> None:
    """GPU nodes carry the taint nvidia.com/gpu, whatever they are cut into."""
    tolerated = {one["key"] for one in releases["gpu-mig"].pod["tolerations"]}
    assert tolerated == {"nvidia.com/gpu", "nvidia.com/mig-3g.40gb"}


def test_on_cpus_no_gpu_is_asked_for(releases: Releases) -> None:
    release = releases["cpu"]
    assert "nvidia" not in str(release.pod)
    assert "tolerations" not in release.pod


def test_pods_go_where_they_are_told(releases: Releases) -> None:
    pod = releases["gpu-placed"].pod
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["priorityClassName"] == "inference-high"
    assert pod["schedulerName"] == "bin-packing"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert "nodeAffinity" in pod["affinity"]
    assert [one["key"] for one in pod["tolerations"]] == ["dedicated"]
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["labelSelector"] == {"matchLabels": {"team": "inference"}}


def test_pods_of_a_release_spread_over_nodes(helm: Helm) -> None:
    release = helm.release()
    (spread,) = release.pod["topologySpreadConstraints"]
    labels = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(
    ("values", "strategy"),
    [
        ({}, {"type": "Recreate"}),
        (
            {"replicas": 2},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        ),
        (
            {"gpu": {"enabled": False}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        ),
        ({"gpu": {"enabled": False}, "cache": {"persistence": {"enabled": True}}}, {"type": "Recreate"}),
        (
            {
                "gpu": {"enabled": False},
                "cache": {"persistence": {"enabled": True, "existingClaim": "mine"}},
            },
            {"type": "Recreate"},
        ),
        (
            {"autoscaling": {"keda": {"enabled": True}}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        ),
        ({"strategy": {"type": "RollingUpdate"}}, {"type": "RollingUpdate"}),
    ],
)
def test_a_rollout_needs_no_gpu_or_claim_that_is_not_free(
    helm: Helm, values: Object, strategy: Object
) -> None:
    assert helm.release(**values).one("Deployment")["spec"]["strategy"] == strategy


def test_a_rollout_waits_until_load_balancers_know_the_new_pod(helm: Helm) -> None:
    assert helm.release().one("Deployment")["spec"]["minReadySeconds"] >= 1  # docs/load-balancing.md
    assert helm.release(minReadySeconds=0).one("Deployment")["spec"]["minReadySeconds"] == 0


def test_a_pod_drains_before_it_is_killed(releases: Releases) -> None:
    for release in releases.values():
        stop = (
            release.container.get("lifecycle", {})
            .get("preStop", {})
            .get("exec", {})
            .get("command", ["", "0"])
        )
        (drain,) = (arg for arg in release.container["args"] if arg.startswith("--shutdown-timeout="))
        least_s = int(stop[1]) + int(drain.removeprefix("--shutdown-timeout=").removesuffix("s"))
        assert release.pod["terminationGracePeriodSeconds"] > least_s


def test_a_start_may_take_half_an_hour_and_a_hang_may_not(helm: Helm) -> None:
    container = helm.release().container
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800
    assert liveness["periodSeconds"] * liveness["failureThreshold"] == 60
    paths = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert paths == ["/health/startup", "/health/ready", "/health/live"]


def test_a_changed_models_yaml_makes_new_pods_and_a_new_chart_does_not(helm: Helm) -> None:
    def template(release: Release) -> Object:
        spec: Object = release.one("Deployment")["spec"]["template"]
        return spec

    def checksum(**values: Any) -> str:
        text: str = template(helm.release(**values))["metadata"]["annotations"]["checksum/models"]
        return text

    other = {"config": {"models": {"other": {"source": "scripted"}}}}
    assert re.fullmatch("[0-9a-f]{64}", checksum())
    assert checksum() == checksum(replicas=3) != checksum(**other)
    assert "helm.sh/chart" not in template(helm.release())["metadata"]["labels"]


def test_keys_come_from_secrets_only(releases: Releases) -> None:
    env = {one["name"]: one for one in releases["two-keys"].container["env"]}
    secret = {"name": "helixflow-api-key", "key": "api-key"}
    assert env["HELIXFLOW_API_KEY"] == {"name": "HELIXFLOW_API_KEY", "valueFrom": {"secretKeyRef": secret}}
    second = env["HELIXFLOW_INFERENCE_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert second == {"name": "helixflow-api-key", "key": "inference-api-key"}
    token = {one["name"]: one for one in releases["hub"].container["env"]}["HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "huggingface", "key": "hf-token"}
    assert not any(one["kind"] == "Secret" for release in releases.values() for one in release)


def test_a_file_of_keys_is_mounted_and_read(releases: Releases) -> None:
    release = releases["key-file"]
    assert "--api-key-file=/etc/helixflow-keys/keys.yaml" in release.container["args"]
    (volume,) = (one for one in release.pod["volumes"] if one["name"] == "keys")
    assert volume["secret"] == {"secretName": "helixflow-keys", "defaultMode": 0o440}
    (mount,) = (one for one in release.container["volumeMounts"] if one["name"] == "keys")
    assert mount["mountPath"] == "/etc/helixflow-keys"
    assert mount["readOnly"]


def test_without_keys_the_server_is_told_so_and_no_secret_is_read(releases: Releases) -> None:
    release = releases["no-keys"]
    assert "--insecure-no-auth" in release.container["args"]
    assert "secretKeyRef" not in str(release)


def test_the_cache_is_a_claim_or_an_empty_folder(helm: Helm, releases: Releases) -> None:
    def volume(release: Release) -> Object:
        (found,) = (one for one in release.pod["volumes"] if one["name"] == "cache")
        return found

    assert volume(helm.release())["emptyDir"] == {"sizeLimit": "100Gi"}
    release = releases["claim"]
    claim = release.one("PersistentVolumeClaim")
    assert volume(release)["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == "shared-ssd"
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "annotations" not in releases["claim-single"].one("PersistentVolumeClaim")["metadata"]
    release = releases["claim-existing"]
    assert release.all("PersistentVolumeClaim") == []
    assert volume(release)["persistentVolumeClaim"]["claimName"] == "models"


def test_shared_memory_can_be_left_out(helm: Helm, releases: Releases) -> None:
    shared = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    assert shared in helm.release().pod["volumes"]
    assert "/dev/shm" not in str(releases["bare"])


def test_an_image_is_named_by_digest_tag_or_version(helm: Helm, releases: Releases) -> None:
    assert helm.release().container["image"] == "helixflow:0.1.0"
    assert helm.release(image={"tag": "nightly"}).container["image"] == "helixflow:nightly"
    release = releases["digest"]
    repository, _, digest = release.container["image"].partition("@")
    assert repository == "registry.example.com:5000/team/helixflow"
    assert digest.startswith("sha256:4f53cda1")
    assert release.pod["imagePullSecrets"] == [{"name": "registry-login"}]


def test_what_is_added_is_there(releases: Releases) -> None:
    release = releases["extras"]
    assert [one["name"] for one in release.pod["initContainers"]] == ["seed"]
    assert [one["name"] for one in release.pod["containers"]] == ["helixflow", "log-shipper"]
    assert {"name": "HELIXFLOW_MAX_NUM_SEQS", "value": "128"} in release.container["env"]
    assert release.container["envFrom"] == [{"configMapRef": {"name": "proxy-settings"}}]
    assert release.container["volumeMounts"][-1]["mountPath"] == "/etc/company"
    extra = {one["metadata"]["name"] for one in release if "labels" not in one["metadata"]}
    assert extra == {"demo-helixflow-extra", "demo-text"}


def test_labels_and_annotations_reach_pods(releases: Releases) -> None:
    release = releases["labels"]
    metadata = release.one("Deployment")["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "inference"
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"]["example.com/scan"] == "yes"
    assert all(one["metadata"]["labels"]["cost-center"] == "4711" for one in release)
    account = release.one("ServiceAccount")["metadata"]
    assert account["name"] == release.pod["serviceAccountName"] == "inference"
    assert account["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}


def test_another_account_can_be_used(releases: Releases) -> None:
    release = releases["bare"]
    assert release.pod["serviceAccountName"] == "somebody"
    assert release.all("ServiceAccount") == []
