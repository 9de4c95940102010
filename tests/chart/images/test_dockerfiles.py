"""What the images promise: one recipe, pinned bases, no root, writable folders on volumes, a health check."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.chart.helm import REPOSITORY, Releases
from tests.chart.images.dockerfile import Dockerfile, expanded, read
from tests.server.certificates import make_certificate
from tests.server.running import RunningServer, free_port, running_server
from tests.server.test_faults import until

PATHS = (REPOSITORY / "Dockerfile", REPOSITORY / "Dockerfile.gpu")


@pytest.fixture(params=PATHS, ids=lambda path: path.name)
def dockerfile(request: pytest.FixtureRequest) -> Dockerfile:
    """Each of the two."""
    return read(request.param)


def test_hadolint_finds_nothing(tools: Path) -> None:
    assert _hadolint(tools, attempts=3) == (0, "")


def _hadolint(tools: Path, attempts: int) -> tuple[int, str]:
    """Status and findings. The program takes a tenth of a second, or, rarely, spins without end."""
    command = [str(tools / "bin" / "hadolint"), *map(str, PATHS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return _hadolint(tools, attempts - 1) if attempts > 1 else (-1, "no answer")
    return done.returncode, done.stdout


def test_both_have_the_same_stages() -> None:
    cpu, gpu = (path.read_text(encoding="utf-8").partition("\nFROM ")[2] for path in PATHS)
    assert cpu == gpu
    cpu_arguments, gpu_arguments = (read(path).arguments for path in PATHS)
    assert cpu_arguments.keys() == gpu_arguments.keys()
    assert "nvidia/cuda" in gpu_arguments["BASE_IMAGE"]


def test_bases_are_pinned_by_a_digest_that_can_be_given(dockerfile: Dockerfile) -> None:
    assert re.fullmatch("sha256:[0-9a-f]{64}", dockerfile.arguments["BASE_DIGEST"])
    assert dockerfile.stages["base"].base == "${BASE_IMAGE}@${BASE_DIGEST}"
    others = [stage.base for name, stage in dockerfile.stages.items() if name != "base"]
    assert set(others) <= dockerfile.stages.keys()


def test_the_program_runs_as_a_user_and_is_stopped_by_sigterm(dockerfile: Dockerfile) -> None:
    runtime = dockerfile.stages["runtime"]
    assert list(dockerfile.stages)[-1] == "runtime"
    assert runtime.one("USER").text == "1000:1000"
    assert runtime.one("STOPSIGNAL").text == "SIGTERM"
    assert runtime.one("ENTRYPOINT").words == ["helixflow"]
    assert runtime.one("CMD").words == ["serve"]
    copied = [one for one in runtime.all("COPY") if "chown" in one.options]
    assert copied == []  # the program is root's, so that the server cannot change itself


def test_what_is_written_lies_on_volumes_and_where_the_chart_puts_it(
    dockerfile: Dockerfile, releases: Releases
) -> None:
    runtime = dockerfile.stages["runtime"]
    volumes = runtime.one("VOLUME").words
    chart = {one["name"]: one["value"] for one in releases["default"].container["env"] if "value" in one}
    for name, folder in chart.items():
        assert runtime.environment[name] == folder
        assert any(f"{folder}/".startswith(f"{volume}/") for volume in volumes)
    mounts = {mount["mountPath"] for mount in releases["default"].container["volumeMounts"]}
    assert set(volumes) <= mounts


def test_everything_that_is_copied_is_let_through_and_there(dockerfile: Dockerfile) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for stage in dockerfile.stages.values():
        for copy in stage.all("COPY"):
            if "from" in copy.options:
                assert copy.options["from"] in dockerfile.stages
                continue
            for source in copy.rest.split()[:-1]:
                assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source
                assert (REPOSITORY / source).exists()


def test_the_extras_are_the_packages(dockerfile: Dockerfile) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(dockerfile.arguments["EXTRAS"].split(","))
    assert {"bnb", "tracing"} <= extras <= project["optional-dependencies"].keys()


def test_the_version_is_the_packages(dockerfile: Dockerfile) -> None:
    (version,) = (
        one.assignments["VERSION"]
        for one in dockerfile.stages["runtime"].all("ARG")
        if "VERSION" in one.assignments
    )
    assert f'version = "{version}"' in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def checked(dockerfile: Dockerfile, port: int, **variables: str) -> int:
    """The exit status of the health check, run here."""
    program, *arguments = json.loads(
        dockerfile.stages["runtime"].one("HEALTHCHECK").text.partition("CMD ")[2]
    )
    assert program == "python"
    env = {**os.environ, **variables, "HELIXFLOW_PORT": str(port)}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, check=False).returncode


def test_the_health_check_sees_whether_the_server_answers(dockerfile: Dockerfile, tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {one: {source: scripted}}")
    assert checked(dockerfile, free_port()) != 0
    with running_server(config) as server:
        server.wait_until("/health/live")
        assert checked(dockerfile, server.port) == 0


def test_the_health_check_speaks_tls_where_the_server_does(dockerfile: Dockerfile, tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {one: {source: scripted}}")
    certificate, key = make_certificate(tmp_path), tmp_path / "tls.key"
    tls = {"HELIXFLOW_SSL_CERTFILE": str(certificate), "HELIXFLOW_SSL_KEYFILE": str(key)}
    server = RunningServer(config, env=tls)
    try:
        until(lambda: "is ready on https" in server.log)
        assert checked(dockerfile, server.port, **tls) == 0
        assert checked(dockerfile, server.port) != 0
    finally:
        server.stop()


def test_variables_are_expanded() -> None:
    assert expanded("/opt/bin:$PATH ${A}${B}", {"PATH": "/bin", "A": "x"}) == "/opt/bin:/bin x"
