"""TLS at the proxies, as the comments in their configurations say: HTTP/2 is agreed on while connecting."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.rolling.conftest import TALKER, Replicas
from tests.rolling.proxies import Edit, Proxy, envoy, haproxy
from tests.server.certificates import make_certificate


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For 127.0.0.1; the key lies beside it, and tls.pem has both."""
    return make_certificate(tmp_path)


def with_tls(folder: Path) -> Edit:
    """Either configuration: what its comment says, said."""

    def edit(text: str) -> str:
        text = re.sub(r"(?m)^( +)#(?=transport_socket:|  )", r"\1", text)  # Envoy's commented lines
        text = re.sub(r"# for TLS with HTTP/2 add: (.*)", r"\1", text)  # HAProxy's words
        return re.sub(r"\btls\.(crt|key|pem)\b", rf"{folder}/tls.\1", text)

    return edit


def check(proxy: Proxy) -> None:
    for http2, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
        with httpx.Client(base_url=proxy.url, http2=http2, verify=proxy.tls) as client:
            answer = client.get("/v1/models")
            assert (answer.status_code, answer.http_version) == (200, version), proxy.name
    with pytest.raises(httpx.TransportError):
        httpx.get(proxy.url.replace("https", "http") + "/v1/models")


def test_clients_over_tls_speak_http2_or_http1(replicas: Replicas, tmp_path: Path, certificate: Path) -> None:
    (replica,) = replicas(TALKER)
    for run in (envoy, haproxy):
        with run(tmp_path, [replica.port], edit=with_tls(tmp_path), certificate=certificate) as proxy:
            check(proxy)
