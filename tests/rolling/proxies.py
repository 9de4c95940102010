"""The real Envoy and HAProxy, run with the configurations that the repository ships.

Only addresses are replaced: where they listen, and which replicas they have in which region.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.fetched_tools import fetched
from tests.server.running import free_port

ROOT = Path(__file__).parents[2]
ENVOY_CONFIG = ROOT / "deploy/envoy/envoy.yaml"
HAPROXY_CONFIG = ROOT / "deploy/haproxy/haproxy.cfg"
PICKER_CONFIG = ROOT / "deploy/envoy/endpoint-picker.yaml"
START_TIMEOUT_S = 20.0

Edit = Callable[[str], str]


class Proxy:
    """One proxy process. `url` is where clients ask, over TLS if there is a `certificate` to know it by.

    `is_up` finds on a page for operators whether a replica, by its port, is asked.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        folder: Path,
        is_up: Callable[[int], bool],
        certificate: Path | None,
        **env: str,
    ) -> None:
        self.is_up = is_up
        self.name = Path(command[0]).name
        self.port = port
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        self.tls = ssl.create_default_context(cafile=certificate) if certificate else False
        self.client = httpx.Client(base_url=self.url, verify=self.tls, timeout=20)
        self.log_path = folder / f"{self.name}.{port}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **env}
            )

    def wait_until_it_has_a_replica(self) -> None:
        """Its own /readyz says so."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended:\n{self.log_path.read_text(encoding='utf-8')}")
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/readyz").status_code == 200:
                    return
            assert time.monotonic() < deadline_s, self.log_path.read_text(encoding="utf-8")
            time.sleep(0.05)

    def stop(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()
        self.client.close()


def tools() -> Path:
    """The folder with `envoy` and `haproxy`; skips the test where they cannot be had."""
    return fetched("fetch_proxies.py")


@contextlib.contextmanager
def envoy(
    folder: Path,
    *regions: Sequence[int],
    config: Path = ENVOY_CONFIG,
    edit: Edit = str,
    certificate: Path | None = None,
    **others: int,
) -> Iterator[Proxy]:
    """Envoy over replicas on these ports, region by region, the first preferred.

    `edit` changes the configuration's text, `others` are the ports of other clusters than the replicas'.
    """
    port = free_port()
    document = yaml.safe_load(edit(config.read_text(encoding="utf-8")))
    listener = document["static_resources"]["listeners"][0]
    listener["address"] = _address(port)
    document["admin"]["address"] = _address(admin := free_port())
    for cluster in document["static_resources"]["clusters"]:
        places = regions if cluster["name"] == "helixflow" else [[others[cluster["name"]]]]
        cluster["load_assignment"]["endpoints"] = [_region(*place) for place in enumerate(places)]
    written = folder / f"envoy.{port}.yaml"
    written.write_text(yaml.safe_dump(document), encoding="utf-8")
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    command = [str(tools() / "envoy"), "-c", str(written), *flags]

    def is_up(replica: int) -> bool:
        page = httpx.get(f"http://127.0.0.1:{admin}/clusters", verify=False).text
        return f"helixflow::127.0.0.1:{replica}::health_flags::healthy" in page

    yield from _running(Proxy(command, port, folder, is_up, certificate))


@contextlib.contextmanager
def haproxy(
    folder: Path,
    here: Sequence[int],
    elsewhere: Sequence[int] = (),
    *,
    edit: Edit = str,
    certificate: Path | None = None,
) -> Iterator[Proxy]:
    """HAProxy over one or two replicas here and perhaps one in another region, by their ports."""
    port = free_port()
    unused = free_port()
    ports = [*here, unused][:2] + [*elsewhere, unused][:1]
    env = {f"REPLICA_{number}": f"127.0.0.1:{place}" for number, place in enumerate(ports, 1)}
    written = folder / f"haproxy.{port}.cfg"
    written.write_text(edit(HAPROXY_CONFIG.read_text(encoding="utf-8")), encoding="utf-8")
    command = [str(tools() / "haproxy"), "-db", "-f", str(written)]
    env |= {"BIND": f"127.0.0.1:{port}", "STATS": f"127.0.0.1:{(stats := free_port())}"}

    def is_up(replica: int) -> bool:
        page = httpx.get(f"http://127.0.0.1:{stats}/metrics", verify=False).text
        server = f"replica-{ports.index(replica) + 1}"
        return f'haproxy_server_status{{proxy="replicas",server="{server}",state="UP"}} 1\n' in page

    yield from _running(Proxy(command, port, folder, is_up, certificate, **env))


@contextlib.contextmanager
def proxies(
    folder: Path, here: Sequence[int], elsewhere: Sequence[int] = (), *, edit: Edit = str
) -> Iterator[tuple[Proxy, Proxy]]:
    """Both, over the same replicas."""
    regions = [here, elsewhere] if elsewhere else [here]
    with (
        envoy(folder, *regions, edit=edit) as first,
        haproxy(folder, here, elsewhere, edit=edit) as second,
    ):
        yield first, second


def slow_checks(text: str) -> str:
    """Either configuration, but so that only answers tell how a replica is."""
    return text.replace("interval: 0.5s", "interval: 600s").replace(
        "inter 500ms fastinter 200ms", "inter 600s"
    )


def _running(proxy: Proxy) -> Iterator[Proxy]:
    try:
        proxy.wait_until_it_has_a_replica()
        yield proxy
    finally:
        proxy.stop()


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _region(priority: int, ports: Sequence[int]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    return {"priority": priority, "lb_endpoints": endpoints}
