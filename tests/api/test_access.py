"""Who may ask, and from where: keys, hosts, origins, routes."""

from __future__ import annotations

import pytest

from inference_server.api.middleware.access import PUBLIC_PATHS, is_loopback
from tests.server.running import RunningServer

PROTECTED = (
    ("GET", "/v1/models"),
    ("GET", "/v1/models/talker"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/api/v1/chat/completions"),
    ("GET", "/models"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("GET", "/version"),
    ("GET", "/no/such/route"),
    ("GET", "//v1/models"),
    ("GET", "/V1/models"),
    ("GET", "/v1/models/"),
    ("GET", "/v1/%2e%2e/metrics"),
    ("OPTIONS", "/v1/models"),
    ("HEAD", "/v1/models"),
    ("GET", "/metrics/"),
    ("GET", "/health/live/"),
)


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_every_other_route_needs_the_key(locked_server: RunningServer, method: str, path: str) -> None:
    response = locked_server.client.request(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_the_public_list_needs_none(locked_server: RunningServer, path: str) -> None:
    assert locked_server.client.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer secret-key"},
        {"authorization": "bearer secret-key"},
        {"x-api-key": "secret-key"},
    ],
)
def test_the_key_opens(locked_server: RunningServer, headers: dict[str, str]) -> None:
    assert locked_server.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("offered", ["secret-ke", "secret-key2", "Secret-Key", "ключ".encode()])
def test_another_key_does_not(locked_server: RunningServer, offered: str | bytes) -> None:
    value = b"Bearer " + (offered if isinstance(offered, bytes) else offered.encode())
    assert locked_server.client.get("/v1/models", headers={"authorization": value}).status_code == 401


def test_without_a_configured_key_any_is_accepted(server: RunningServer) -> None:
    assert server.client.get("/v1/models", headers={"authorization": "Bearer x"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1"])
def test_on_loopback_a_foreign_host_name_is_refused(server: RunningServer, host: str) -> None:
    assert server.client.get("/v1/models", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_on_loopback_its_own_names_are_fine(server: RunningServer, host: str) -> None:
    assert server.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_page_of_another_origin_is_refused(server: RunningServer) -> None:
    foreign = server.client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
    own = server.client.get("/v1/models", headers={"origin": server.url})
    assert own.status_code == 200


def test_loopback_is_told_from_other_addresses() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", ""))


def test_unknown_routes_and_methods_get_the_envelope(server: RunningServer) -> None:
    missing = server.client.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert missing.headers["x-helixflow-error"] == "not_found"
    wrong = server.client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.headers["x-helixflow-error"] == "method_not_allowed"
    assert wrong.json()["error"]["type"] == "invalid_request_error"


def test_a_request_id_is_echoed_or_made(server: RunningServer) -> None:
    echoed = server.client.get("/version", headers={"x-request-id": "abc-123"})
    assert echoed.headers["x-request-id"] == "abc-123"
    forged = server.client.get("/version", headers={"x-request-id": "a b;c"})
    assert forged.headers["x-request-id"].startswith("req-")
