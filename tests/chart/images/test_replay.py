"""The CPU image's stages, replayed in a scratch root; then the entry point serves there, without rights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chart.helm import REPOSITORY
from tests.chart.images.dockerfile import expanded, read
from tests.chart.images.replay import Layer, Replay, possible
from tests.server.running import free_port

DOCKERFILE = read(REPOSITORY / "Dockerfile")
KEY = "0123456789abcdef0123456789abcdef"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layer]:
    """The last stage. REPLAY_ROOT names an empty Debian to take instead of this machine's root."""
    scratch = tmp_path_factory.mktemp("image")
    if not possible(scratch):
        pytest.skip("replaying stages needs root and overlayfs")
    tools = Path(os.environ.get("TEST_TOOLS") or Path.home() / ".cache" / "helixflow-tools")
    cache = tools / "pip-cache"
    cache.mkdir(parents=True, exist_ok=True)
    base = Path(os.environ.get("REPLAY_ROOT", "/"))
    replay = Replay(DOCKERFILE, context=REPOSITORY, scratch=scratch, base=base, cache=cache)
    yield replay.build(TORCH_INDEX="")  # the index of whoever runs this serves torch
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def volumes(image: Layer, tmp_path: Path) -> dict[str, Path]:
    """Fresh volumes where the image declares them, owned by the image's user."""
    mounted = {}
    for target in DOCKERFILE.stages["runtime"].one("VOLUME").words:
        folder = tmp_path / target.strip("/").replace("/", "-")
        folder.mkdir()
        os.chown(folder, 1000, 1000)
        mounted[target] = folder
    (mounted["/tmp"] / "models.yaml").write_text("models: {one: {source: scripted, preload: true}}")
    return mounted


def inside(image: Layer, volumes: dict[str, Path], *words: str, **environment: str) -> list[str]:
    """A command line that runs words as the image's user on a read-only root."""
    user = DOCKERFILE.stages["runtime"].one("USER").text
    return image.command(words, binds=volumes, user=user, environment=environment, writable=False)


def output(command: list[str]) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_program_can_be_read_by_the_user_and_not_be_changed(
    image: Layer, volumes: dict[str, Path]
) -> None:
    assert output(inside(image, volumes, "id", "-u")) == "1000\n"
    assert (
        output(inside(image, volumes, "sh", "-c", "command -v helixflow")) == "/opt/helixflow/bin/helixflow\n"
    )
    compiled = "find /opt/helixflow -path '*/inference_server/__pycache__/app.*.pyc' | wc -l"
    assert int(output(inside(image, volumes, "sh", "-c", compiled))) == 1
    done = subprocess.run(
        inside(image, volumes, "touch", "/opt/helixflow/x"), capture_output=True, check=False
    )
    assert done.returncode != 0


def test_what_a_worker_needs_is_there(image: Layer, volumes: dict[str, Path]) -> None:
    program = "import inference_server.worker.process, torch, transformers; print(torch.ones(2).sum())"
    assert output(inside(image, volumes, "python", "-c", program)) == "tensor(2.)\n"


def test_the_entry_point_refuses_to_listen_without_a_key(image: Layer, volumes: dict[str, Path]) -> None:
    done = subprocess.run(
        inside(image, volumes, *entry_point()), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "API key" in done.stderr


def test_the_entry_point_serves_is_healthy_and_ends_on_sigterm(
    image: Layer, volumes: dict[str, Path]
) -> None:
    runtime, port = DOCKERFILE.stages["runtime"], free_port()
    said = {"HELIXFLOW_PORT": str(port), "HELIXFLOW_API_KEY": KEY, "HELIXFLOW_CONFIG": "/tmp/models.yaml"}
    check = json.loads(runtime.one("HEALTHCHECK").text.partition("CMD ")[2])
    with subprocess.Popen(inside(image, volumes, *entry_point(), **said)) as server:
        try:
            wait_until_ready(server, port)
            body = {"model": "one", "messages": [{"role": "user", "content": "Hello"}]}
            headers = {"Authorization": f"Bearer {KEY}"}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            assert httpx.post(url, json=body, headers=headers, timeout=30).status_code == 200
            assert httpx.post(url, json=body, timeout=30).status_code == 401
            output(inside(image, volumes, *check, **said))
            server.send_signal(getattr(signal, runtime.one("STOPSIGNAL").text))
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()
    assert subprocess.run(inside(image, volumes, *check, **said), capture_output=True).returncode != 0


def entry_point() -> list[str]:
    """What a container would run."""
    runtime = DOCKERFILE.stages["runtime"]
    return [expanded(word, {}) for word in runtime.one("ENTRYPOINT").words + runtime.one("CMD").words]


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    """Return when the server is ready; fail if it ends or takes a minute."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("not ready within 60 s")
