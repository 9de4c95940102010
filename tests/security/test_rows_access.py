"""Rows 8, 9, 10, 18, 19 and 26: who may ask, from where, and what others learn of it."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from inference_server.access.keys import Key, KeyRing, digest_of
from inference_server.api.application import _routes
from inference_server.api.middleware.access import PUBLIC_PATHS
from tests.security.wire import chat, request, wire
from tests.server.running import RunningServer, resident_megabytes, running_server

ADMIN, ALICE, BOB = "the-admins-own-key", "alice-0123456789abcdef", "bob-0123456789abcdef"
KEYS = f"""
keys:
  - {{name: admin, key: {ADMIN}, scopes: [inference, admin]}}
  - {{name: alice, key: {ALICE}}}
  - {{name: bob, key: {BOB}}}
"""
MODELS = """
models:
  m: {source: 'scripted:?output_tokens=4', preload: true}
  guest: {source: 'scripted:?output_tokens=4', keep_alive: 1h}
  broken: {source: 'scripted:?load_error=failed'}
  nowhere: {source: /no/such/folder/anywhere}
"""


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("locked")
    (folder / "models.yaml").write_text(MODELS, encoding="utf-8")
    (folder / "keys.yaml").write_text(KEYS, encoding="utf-8")
    with running_server(folder / "models.yaml", "--api-key-file", str(folder / "keys.yaml")) as server:
        assert ask(server, ALICE).status_code == 200
        before = resident_megabytes(server.process.pid)
        yield server
        assert ask(server, ALICE).status_code == 200
        assert resident_megabytes(server.process.pid) - before <= 10


def ask(server: RunningServer, key: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return server.client.post("/v1/chat/completions", json=chat(**fields), headers=headers)


def spellings(path: str) -> set[str]:
    """Ways in which a path could get past a check that reads it otherwise than the router does."""
    last = path.rpartition("/")[2] or "/"
    escaped = path.replace(last, f"%{ord(last[0]):02x}{last[1:]}")
    tails = ("/", "//", "?x=1", "%00", ";x", "%20", "#/metrics", "%2f")
    heads = ("/", "/metrics/..", "/livez/%2e%2e", "/x/..", "/metrics%2f..")
    whole = (path, path.upper(), path.replace("/", "//"), path.replace("/", "/./"), escaped)
    return {*whole, *(path + tail for tail in tails), *(head + path for head in heads)}


def test_row_8_every_route_method_and_spelling_needs_a_key(locked: RunningServer) -> None:
    """But the public list, in exactly its own spelling."""
    methods = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE")
    routes = {route.path.replace("{name:path}", "m") for route in _routes()} | {
        "/invocations",
        "/docs",
        "/",
        "/admin",
    }
    num_tried = 0
    for path in sorted(routes - PUBLIC_PATHS):
        for spelling in sorted(spellings(path)):
            for method in methods:
                with wire(locked.port) as client:
                    client.send(request(b"", method=method, target=spelling))
                    status = client.answer(method).status
                assert status in (400, 401), (method, spelling, status)
                num_tried += 1
    assert num_tried > 3000


def test_row_8_an_absolute_target_is_the_same_path(locked: RunningServer) -> None:
    for target in ("http://127.0.0.1/v1/models", "http://evil.example/v1/models", "*", "v1/models"):
        with wire(locked.port) as client:
            client.send(request(b"", method="GET", target=target))
            assert client.answer("GET").status in (400, 401, 403)


def test_row_9_all_keys_are_compared_by_digest_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    ring = KeyRing([Key(f"k{number}", digest_of(b"key-%d" % number)) for number in range(5)])
    for offered, name in (
        (b"key-0", "k0"),
        (b"key-4", "k4"),
        (b"no", None),
        (b"", None),
        (b"x" * 10_000, None),
    ):
        compared.clear()
        found = ring.find(offered)
        assert (found and found.name) == name
        assert len(compared) == 5
        assert {(len(one), len(other)) for one, other in compared} == {(32, 32)}


NO_KEYS = ("", " ", ALICE[:-1], ALICE + "0", ALICE.upper(), "null", "é" * 9, "x" * 9000)


@pytest.mark.parametrize("offered", NO_KEYS)
def test_row_9_what_is_no_key_does_not_open(locked: RunningServer, offered: str) -> None:
    for name in ("Authorization: Bearer", "X-Api-Key:", "Authorization: Basic"):
        with wire(locked.port) as client:
            client.send(request(b"", method="GET", target="/v1/models", headers=(f"{name} {offered}",)))
            assert client.answer().status == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Host: evil.example",), 403),
        (("Host: 127.0.0.1.evil.example",), 403),
        (("Host: 127.0.0.1", "Host: evil.example"), 403),
        (("Host: 127.0.0.1@evil.example",), 403),
        (("Host: ",), 403),
        ((), 403),
        (("Host: localhost", "Origin: https://evil.example"), 403),
        (("Host: localhost", "Origin: null"), 403),
        (("Host: localhost", "Origin: http://localhost.evil.example"), 403),
        (("Host: localhost", "Content-Type: text/plain"), 415),
        (("Host: localhost", "Content-Type: application/x-www-form-urlencoded"), 415),
        (("Host: localhost", "Content-Type: multipart/form-data; boundary=x"), 415),
        (("Host: localhost", "Content-Type: application/json"), 200),
        (("Host: [::1]", "Content-Type: application/json; charset=utf-8"), 200),
    ],
)
def test_row_10_a_web_page_cannot_reach_a_server_on_loopback(
    server: RunningServer, headers: tuple[str, ...], status: int
) -> None:
    data = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
    lines = ["POST /v1/chat/completions HTTP/1.1", *headers, f"Content-Length: {len(data)}", "", ""]
    with wire(server.port) as client:
        client.send("\r\n".join(lines).encode() + data)
        answer = client.answer()
    assert answer.status == status, answer.body
    assert not any(name.lower().startswith("access-control-") for name in answer.headers)


def test_row_10_a_pages_question_whether_it_may_is_not_answered_with_yes(server: RunningServer) -> None:
    asked = ("Origin: https://evil.example", "Access-Control-Request-Method: POST")
    with wire(server.port) as client:
        client.send(request(b"", method="OPTIONS", headers=asked))
        answer = client.answer("OPTIONS")
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


def test_row_18_errors_tell_no_paths_addresses_keys_or_prompts(locked: RunningServer) -> None:
    prompt = "a-very-private-prompt"
    asked = [
        ask(locked, ALICE, model="broken", messages=[{"role": "user", "content": prompt}]),
        ask(locked, ALICE, model="nowhere", messages=[{"role": "user", "content": prompt}]),
        ask(locked, ALICE, model=prompt),
        ask(locked, ALICE, temperature=prompt),
        ask(locked, "wrong-key-0123456789"),
        ask(locked, ALICE, messages=[{"role": "user", "content": prompt * 1000}], max_tokens=10**6),
    ]
    for response in asked:
        assert response.status_code >= 400
        for secret in (
            "/tmp",
            "/no/such",
            "/root",
            "site-packages",
            "0x7f",
            ".py",
            ALICE,
            ADMIN,
            "wrong-key",
        ):
            assert secret not in response.text, response.text
    log = locked.log
    for secret in (prompt, ALICE, BOB, ADMIN, "wrong-key"):
        assert secret not in log


def test_row_18_a_client_writes_no_lines_into_the_log(locked: RunningServer) -> None:
    for odd in ("a\tb", "x" * 500, "a b", "\x85b", '"}{"level":"ERROR"'):
        with wire(locked.port) as client:
            headers = (f"X-Request-Id: {odd}", f"Authorization: Bearer {ALICE}", f"User-Agent: {odd}")
            client.send(request(chat(model="m\nERROR forged line\u2028\x1b[31m"), headers=headers))
            answer = client.answer()
        assert answer.status == 404
        assert answer.headers["x-request-id"].startswith("req-")
    assert not any(line.startswith(("ERROR forged", "b")) for line in locked.log.splitlines())
    assert "\x1b[31m" not in locked.log


def test_row_19_one_keys_prompts_are_not_in_another_keys_cache(locked: RunningServer) -> None:
    messages = [{"role": "user", "content": "a secret that fills several blocks of the prefix cache " * 4}]

    def num_cached(key: str, **fields: Any) -> int:
        usage = ask(locked, key, messages=messages, **fields).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert num_cached(ALICE) == 0
    assert num_cached(ALICE) > 100
    assert num_cached(BOB) == 0
    assert num_cached(BOB, cache_salt="alice") == 0


@pytest.mark.parametrize("value", [0, "0s", -1, "1s"])
def test_row_26_a_key_for_inference_cannot_shorten_or_pin_a_stay(locked: RunningServer, value: Any) -> None:
    assert ask(locked, ALICE, model="guest", keep_alive=value).status_code == 200
    models = locked.client.get("/api/ps", headers={"x-api-key": ADMIN}).json()["models"]
    (model,) = [model for model in models if model["name"].startswith("guest")]
    left = datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=50) < left <= timedelta(days=1)


def test_row_26_the_admins_key_can(locked: RunningServer) -> None:
    assert ask(locked, ADMIN, keep_alive=-1).status_code == 200
    assert ask(locked, ADMIN, keep_alive=3600).status_code == 200
