"""Where the server listens: `::` is for clients of IPv4, too, as in a cluster that knows both."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from tests.server.running import running_server


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_the_address_of_all_machines_takes_both_kinds_of_clients(tmp_path: Path, host: str) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("models: {m: {source: scripted}}\n", encoding="utf-8")
    with running_server(config, "--host", host, "--insecure-no-auth") as server:
        assert f"ready on http://[::]:{server.port}" in server.log
        for client in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{client}:{server.port}/livez").status_code == 200
