"""A key file on a real server: it opens, is read again on a reload, and changes nothing when it is broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_server.access.keys import digest_of
from tests.server.running import RunningServer, running_server
from tests.server.test_faults import until

CONFIG = "models: {talker: {source: 'scripted:?output_tokens=3', preload: true}}\n"
ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
ADMIN = f"- {{name: admin, sha256: {digest_of(b'the-admins-own-key').hex()}, scopes: [inference, admin]}}\n"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n{ADMIN}- {{name: alice, key: {ALICE}}}\n", encoding="utf-8")
    return path


@pytest.fixture
def server(tmp_path: Path, keys: Path) -> Iterator[RunningServer]:
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with running_server(config, "--api-key-file", str(keys)) as running:
        yield running


def status(server: RunningServer, key: str) -> int:
    body = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {key}"}
    return server.client.post("/v1/chat/completions", json=body, headers=headers).status_code


def test_keys_come_and_go_with_a_reload_and_no_key_is_ever_logged(server: RunningServer, keys: Path) -> None:
    admin = {"x-api-key": "the-admins-own-key"}
    assert (status(server, ALICE), status(server, BOB), status(server, "x")) == (200, 401, 401)
    keys.write_text(f"keys:\n{ADMIN}- {{name: bob, key: {BOB}}}\n", encoding="utf-8")
    assert server.client.post("/models/reload", headers=admin).status_code == 200
    assert (status(server, ALICE), status(server, BOB)) == (401, 200)
    keys.write_text("keys: [{name: bob}]", encoding="utf-8")
    broken = server.client.post("/models/reload", headers=admin)
    assert broken.status_code == 400
    assert "either key or sha256" in broken.json()["error"]["message"]
    assert status(server, BOB) == 200
    assert server.client.post("/models/reload", headers={"x-api-key": BOB}).status_code == 403
    for secret in (ALICE, BOB, "the-admins-own-key"):
        assert secret not in server.log


def test_what_a_newcomer_copies_has_a_place_for_a_key(server: RunningServer) -> None:
    until(lambda: "Stop it with Ctrl-C" in server.log)
    assert "-H 'Authorization: Bearer '$HELIXFLOW_API_KEY" in server.log


def test_a_reload_that_is_refused_leaves_the_keys_as_they_were(server: RunningServer, keys: Path) -> None:
    admin = {"x-api-key": "the-admins-own-key"}
    keys.write_text(f"keys:\n{ADMIN}- {{name: bob, key: {BOB}}}\n", encoding="utf-8")
    config = keys.with_name("models.yaml")
    config.write_text(f"memory: {{host: 1GiB}}\n{CONFIG}", encoding="utf-8")
    refused = server.client.post("/models/reload", headers=admin)
    assert (refused.status_code, "`memory`" in refused.text) == (400, True)
    assert (status(server, ALICE), status(server, BOB)) == (200, 401)
    config.write_text(CONFIG, encoding="utf-8")
    assert server.client.post("/models/reload", headers=admin).status_code == 200
    assert (status(server, ALICE), status(server, BOB)) == (401, 200)


def test_a_wrong_file_is_said_at_the_start(tmp_path: Path) -> None:
    config, keys = tmp_path / "models.yaml", tmp_path / "keys.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    keys.write_text(f"keys: [{{name: a, key: {ALICE}, limit: 3}}]", encoding="utf-8")
    server = RunningServer(config, "--api-key-file", str(keys))
    assert server.process.wait(timeout=30) == 2
    assert "unknown field" in server.log
    assert ALICE not in server.log
    server.client.close()
