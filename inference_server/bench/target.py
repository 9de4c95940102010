"""The server to measure: the one at an address, or one of our own for the time of the measurement."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from inference_server.bench.options import TargetOptions
from inference_server.bench.server_process import ServerProcess, free_port, helixflow_command, running
from inference_server.errors import Unavailable

READY_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers, and the model to ask it for."""

    base_url: str
    model: str
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class HelixFlowLaunch:
    """How our own server is started on `port`."""

    port: int
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> tuple[str, ...]:
        """`helixflow serve …`."""
        return helixflow_command(self.port, self.flags)

    @property
    def base_url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def attached(options: TargetOptions) -> Iterator[Target]:
    """The target; one of our own is started before and ended after.

    Raises:
        Unavailable: there is no server, or it has no model.
    """
    if options.base_url is not None:
        yield _target(options.base_url, options)
        return
    with own_server(HelixFlowLaunch(free_port(), options.server_flags)) as server:
        yield _target(server.base_url, options)


@contextlib.contextmanager
def own_server(launch: HelixFlowLaunch) -> Iterator[ServerProcess]:
    """A `helixflow serve` whose preloaded models are in memory.

    Raises:
        Unavailable: it did not come up.
    """
    with (
        tempfile.TemporaryDirectory(prefix="helixflow-bench-") as folder,
        running(launch, Path(folder) / "server.log") as server,
    ):
        server.wait_until("/health/ready", READY_TIMEOUT_S)
        yield server


def _target(base_url: str, options: TargetOptions) -> Target:
    model = options.model or first_model(base_url, options.api_key)
    return Target(base_url, model, options.api_key)


def first_model(base_url: str, api_key: str | None) -> str:
    """A loaded model rather than one that has to be loaded; never an alias.

    Raises:
        Unavailable: the server is not there, refuses, or has no models.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{base_url}/v1/models", headers=headers, timeout=60.0)
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        raise Unavailable(
            f"no server answers at {base_url} ({what}); start one with `helixflow serve`, "
            "name another with --base-url, or add --start"
        ) from error
    if response.status_code == 401:
        raise Unavailable(f"{base_url} wants a valid API key; set HELIXFLOW_API_KEY or give --api-key")
    models = _models(response)
    if not models:
        raise Unavailable(
            f"{base_url}/v1/models names no model (status {response.status_code}); give --model"
        )
    ranked = sorted(models, key=lambda m: (m.get("parent") is not None, m.get("status") != "loaded"))
    return str(ranked[0]["id"])


def _models(response: httpx.Response) -> list[dict[str, object]]:
    try:
        body = response.json()
    except ValueError:
        return []
    data = body.get("data") if response.is_success and isinstance(body, dict) else None
    entries = data if isinstance(data, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
