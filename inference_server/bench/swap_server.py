"""The servers of `bench swap`: their configuration for a policy and a budget, and their lifecycle routes.

It knows HelixFlow's models.yaml and /models, no trace and no statistics.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from inference_server.bench.options import SwapOptions
from inference_server.bench.server_process import free_port
from inference_server.bench.target import HelixFlowLaunch, own_server
from inference_server.errors import Unavailable

_TIMEOUT_S = 600.0
_NOT_HERE = frozenset({404, 405, 409})  # a server or model that cannot sleep
# Nothing is to be refused or given up for its number: the wait itself is what is measured.
_LIMITS = {"max_num_queued_reqs": 65536, "max_queued_total": 65536, "request_timeout": "30m"}


@dataclass(frozen=True, slots=True)
class Policy:
    """A way to decide who is in memory: settings of the server."""

    name: str
    settings: Mapping[str, object]


POLICIES = (
    Policy("default", {}),
    Policy("plain-lru", {"eviction_policy": "lru", "collate": False, "min_residency": 0}),
)


def model_names(num_models: int) -> tuple[str, ...]:
    """The names of equal models."""
    return tuple(f"model-{number}" for number in range(1, num_models + 1))


def configuration(options: SwapOptions, policy: Policy, host_bytes: int | None) -> dict[str, object]:
    """A models.yaml as a tree: equal models under one budget; None is the server's default budget."""
    models = {name: {**options.entry, "keep_alive": -1} for name in model_names(options.num_models)}
    tree: dict[str, object] = {"models": models, "server": {**_LIMITS, **policy.settings}}
    return tree if host_bytes is None else {**tree, "memory": {"host": host_bytes}}


@contextlib.contextmanager
def own_swap_server(options: SwapOptions, policy: Policy, host_bytes: int | None) -> Iterator[Lifecycle]:
    """A `helixflow serve` with equal models, none of them loaded.

    Raises:
        Unavailable: it did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="helixflow-bench-") as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(json.dumps(configuration(options, policy, host_bytes)), encoding="utf-8")
        flags = ("--config", str(config), "--log-level", "warning")
        with own_server(HelixFlowLaunch(free_port(), flags)) as server, _lifecycle(server.base_url) as found:
            yield found


@contextlib.contextmanager
def running_swap_server(options: SwapOptions) -> Iterator[Lifecycle]:
    """The server at the options' address."""
    with _lifecycle(str(options.base_url), options.api_key) as found:
        yield found


@contextlib.contextmanager
def _lifecycle(base_url: str, api_key: str | None = None) -> Iterator[Lifecycle]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=base_url, headers=headers, timeout=_TIMEOUT_S) as http:
        yield Lifecycle(http, base_url, api_key)


class Lifecycle:
    """The routes that bring models in and out, and tell of them.

    Every method raises Unavailable if the server is not there or refuses.
    """

    def __init__(self, http: httpx.Client, base_url: str, api_key: str | None) -> None:
        self._http = http
        self.base_url = base_url
        self.api_key = api_key

    def load(self, model: str) -> None:
        """Bring a model into memory."""
        self._call("POST", "/models/load", model)

    def unload(self, model: str) -> None:
        """Take a model out of memory."""
        self._call("POST", "/models/unload", model)

    def sleep(self, model: str) -> bool:
        """Put a model to sleep; False if that is not supported here."""
        return self._call("POST", "/models/sleep", model, passing=_NOT_HERE).is_success

    def memory_bytes(self, model: str) -> int:
        """What a loaded model has reserved."""
        models = self._call("GET", "/models").json()["data"]
        return next(int(entry["memory_bytes"]) for entry in models if entry["id"] == model)

    def metrics(self) -> str:
        """The page of /metrics."""
        return self._call("GET", "/metrics").text

    def _call(
        self, method: str, path: str, model: str | None = None, *, passing: frozenset[int] = frozenset()
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=None if model is None else {"model": model})
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.base_url}{path} failed: {error or type(error).__name__}") from error
        if not response.is_success and response.status_code not in passing:
            raise Unavailable(
                f"{self.base_url}{path} answered with status {response.status_code}: {response.text[:300]}"
            )
        return response
