"""TLS at the server itself: `--ssl-certfile` and `--ssl-keyfile`."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.server.certificates import make_certificate
from tests.server.running import RunningServer, free_port
from tests.server.test_faults import until

CONFIG = "models: {talker: {source: 'scripted:?output_tokens=3', preload: true}}\n"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_server_with_a_certificate_speaks_tls_and_nothing_else(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    flags = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(tmp_path / "tls.key"))
    server = RunningServer(config, *flags)
    url = f"https://127.0.0.1:{server.port}"
    try:
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=certificate)) as client:
            wait_until_ready(client)
            body = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            streamed = client.post("/v1/chat/completions", json=body | {"stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.HTTPError):
            server.client.get("/livez")  # without TLS
        assert oldest_version(server.port) >= ssl.TLSVersion.TLSv1_2
        until(lambda: f"is ready on {url}" in server.log)
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("verb", ["serve", "check-config"])
def test_a_file_that_is_no_certificate_is_found_at_once(tmp_path: Path, verb: str) -> None:
    (tmp_path / "models.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "tls.pem").write_text("no certificate", encoding="utf-8")
    command = [sys.executable, "-m", "inference_server.cli.main", verb, "--config", "models.yaml"]
    command += ["--ssl-certfile", "tls.pem", "--ssl-keyfile", "tls.pem"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 2
    assert "tls.pem" in ended.stderr
    assert "Traceback" not in ended.stderr


BROKEN_LISTENER = """
import sys
from inference_server import app
from inference_server.cli.main import main

async def serve(self, sockets):
    raise RuntimeError("it cannot listen")

app._HttpServer.serve = serve
sys.exit(main())
"""


def test_a_server_whose_listener_ends_ends_too(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-c", BROKEN_LISTENER, "serve", "--port", str(free_port())]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 1
    assert "it cannot listen" in ended.stderr
    assert "is ready on" not in ended.stdout


def wait_until_ready(client: httpx.Client) -> None:
    for _ in range(600):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def oldest_version(port: int) -> ssl.TLSVersion:
    """The oldest that the server agrees on."""
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain):
                return version
        except (ssl.SSLError, ConnectionError):
            continue
    return ssl.TLSVersion.TLSv1_3
