"""What the chart says to a server, said to a real one: arguments, models.yaml, probes, scrapes, helm test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.helm import Helm, Object, Release, Releases
from tests.server.running import RunningServer, running_server

KEY = "0123456789abcdef0123456789abcdef"
SCRIPTED = {
    "models": {
        "bge": {"source": "scripted", "task": "embed"},
        "one": {"source": "scripted", "preload": True},
        "two": {"source": "scripted"},
    }
}


@pytest.fixture(scope="module")
def release(helm: Helm) -> Release:
    """A release with scripted models."""
    return helm.release(config=SCRIPTED)


@pytest.fixture(scope="module")
def server(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that reads the release's models.yaml and was started with its arguments."""
    config = tmp_path_factory.mktemp("release") / "models.yaml"
    config.write_text(release.one("ConfigMap")["data"]["models.yaml"])
    flags = [arg for arg in release.container["args"] if not arg.startswith(("serve", "--config", "--port"))]
    with running_server(config, *flags, env={"HELIXFLOW_API_KEY": KEY}) as running:
        running.wait_until("/health/ready")
        yield running


def test_every_models_yaml_and_every_argument_is_one_that_the_server_takes(
    releases: Releases, tmp_path: Path
) -> None:
    for name in ("default", "models", "long-drain", "key-file", "no-keys", "ipv6", "extras"):
        done = _check_config(releases[name], tmp_path)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    wrong = Release(releases["default"])
    wrong.container["args"].append("--no-such-flag")
    assert _check_config(wrong, tmp_path).returncode != 0
    wrong.container["args"].pop()


def _check_config(release: Release, folder: Path) -> subprocess.CompletedProcess[str]:
    """`helixflow check-config` with the arguments and variables of the release's container."""
    config, keys = folder / "models.yaml", folder / "keys.yaml"
    config.write_text(release.one("ConfigMap")["data"]["models.yaml"])
    keys.write_text(f"keys:\n  - {{name: admin, key: {KEY}, scopes: [inference, admin]}}\n")
    places = {"/etc/helixflow/models.yaml": str(config), "/etc/helixflow-keys/keys.yaml": str(keys)}
    verb, *flags = release.container["args"]
    assert verb == "serve"
    for inside, here in places.items():
        flags = [flag.replace(inside, here) for flag in flags]
    env = {one["name"]: one.get("value", KEY) for one in release.container["env"] if one["name"] != "HOME"}
    command = [sys.executable, "-m", "inference_server.cli.main", "check-config", *flags]
    return subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_needs_no_key(release: Release, server: RunningServer, probe: str) -> None:
    assert server.client.get(release.container[probe]["httpGet"]["path"]).status_code == 200


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor"])
def test_a_scrape_needs_no_key(releases: Releases, server: RunningServer, kind: str) -> None:
    spec = releases["pod-monitor" if kind == "PodMonitor" else "monitoring"].one(kind)["spec"]
    (endpoint,) = spec["podMetricsEndpoints"] if kind == "PodMonitor" else spec["endpoints"]
    assert "vllm:num_requests_waiting" in server.client.get(endpoint["path"]).text


# The metrics that the endpoint picker (v1.0.1) reads unless a flag names others; pkg/epp/server/runserver.go.
PICKER_METRICS = {
    "total-queued-requests-metric": "vllm:num_requests_waiting",
    "kv-cache-usage-percentage-metric": "vllm:gpu_cache_usage_perc",
    "lora-info-metric": "vllm:lora_requests_info",
}


def test_the_picker_finds_what_it_scrapes(releases: Releases, server: RunningServer) -> None:
    pod = releases["inferencepool"].one("Deployment", "picker")["spec"]["template"]["spec"]
    flags = dict(arg.removeprefix("--").split("=", 1) for arg in pod["containers"][0]["args"])
    page = server.client.get(flags["model-server-metrics-path"]).text
    for flag, default in PICKER_METRICS.items():
        assert f"\n{flags.get(flag, default)}{{" in page or f"\n{flags.get(flag, default)} " in page


def test_helm_test_lists_models_asks_one_and_streams(
    release: Release, server: RunningServer, tmp_path: Path
) -> None:
    done = _smoke_test(release, tmp_path, BASE_URL=server.url, API_KEY=KEY, MODEL="two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("from two") == 2
    assert [line.split(":")[1].strip() for line in done.stdout.splitlines()] == [
        "models",
        "completion",
        "stream",
    ]


def test_helm_test_asks_a_model_what_it_is_for(
    release: Release, server: RunningServer, tmp_path: Path
) -> None:
    done = _smoke_test(release, tmp_path, BASE_URL=server.url, API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("from one") == 2  # and not from bge, which is listed first
    done = _smoke_test(release, tmp_path, BASE_URL=server.url, API_KEY=KEY, MODEL="bge")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("from bge") == 1


def test_helm_test_fails_without_the_key_or_the_model(
    release: Release, server: RunningServer, tmp_path: Path
) -> None:
    assert _smoke_test(release, tmp_path, BASE_URL=server.url, API_KEY="wrong").returncode != 0
    done = _smoke_test(release, tmp_path, BASE_URL=server.url, API_KEY=KEY, MODEL="no-such-model")
    assert done.returncode != 0
    assert "404" in done.stderr


def _smoke_test(release: Release, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The script that the release's test pod runs, with its variables, some of them replaced."""
    script = folder / "smoke_test.py"
    script.write_text(release.one("ConfigMap", "test")["data"]["smoke_test.py"])
    container: Object = release.one("Pod", "test")["spec"]["containers"][0]
    assert container["command"] == ["python", "/test/smoke_test.py"]
    said = {one["name"]: one.get("value", "") for one in container["env"]}
    assert said["BASE_URL"] == "http://demo-helixflow:80"
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **said, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
