"""Keys with scopes, limits and models over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference_server.config.catalog import Catalog
from tests.api.server import CHAT, Server, events
from tests.generation.fakes import until

KEYS = """
keys:
- {name: alice, key: alice-0123456789abc, requests_per_minute: 2, models: [demo]}
- {name: bob, key: bob-0123456789abcde, tokens_per_minute: 20}
- {name: carol, key: carol-0123456789abc, max_concurrency: 1}
- {name: root, key: root-0123456789abcd, scopes: [admin]}
- {name: lead, key: lead-0123456789abcd, scopes: [inference, admin], models: [demo]}
"""
SECRETS = {
    "alice": "alice-0123456789abc",
    "bob": "bob-0123456789abcde",
    "carol": "carol-0123456789abc",
    "root": "root-0123456789abcd",
    "lead": "lead-0123456789abcd",
}


def server_of(tmp_path: Path) -> Server:
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS, encoding="utf-8")
    return Server(tmp_path, api_key_file=str(path))


async def ask(server: Server, who: str, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {SECRETS[who]}"}
    return await server.client.post(path, json={**CHAT, **fields}, headers=headers)


async def get(server: Server, who: str, path: str) -> httpx.Response:
    return await server.client.get(path, headers={"x-api-key": SECRETS[who]})


def test_requests_a_minute_end_in_a_429_with_headers(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        first = await ask(server, "alice")
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        await ask(server, "alice")
        refused = await ask(server, "alice")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert (await ask(server, "bob")).status_code == 200

    asyncio.run(scenario())


def test_tokens_a_minute_count_prompts_and_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        assert (await ask(server, "bob")).status_code == 200
        refused = await ask(server, "bob")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
        assert (await ask(server, "bob", "/v1/embeddings", model="embedder")).status_code == 400

    asyncio.run(scenario())


def test_requests_at_once_are_limited_per_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        (await server.warm()).gate = asyncio.Semaphore(0)
        running = asyncio.create_task(ask(server, "carol"))
        await until(lambda: server.worker.open)
        assert (await ask(server, "carol")).status_code == 429
        server.worker.gate.release()  # type: ignore[union-attr]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.worker.gate = None
        assert (await ask(server, "carol")).status_code == 200

    asyncio.run(scenario())


def test_a_key_sees_and_asks_its_own_models_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        listed = {model["id"] for model in (await get(server, "alice", "/v1/models")).json()["data"]}
        assert listed == {"demo", "gpt-3.5-turbo"}
        assert len((await get(server, "bob", "/v1/models")).json()["data"]) > 2
        for path in ("/v1/models/other", "/v1/models/nobody"):
            assert (await get(server, "alice", path)).status_code == 404
        assert (await ask(server, "alice", model="other")).status_code == 404
        assert (await ask(server, "alice", model="gpt-3.5-turbo")).status_code == 200
        tokenized = await server.client.post(
            "/tokenize", json={"model": "other", "prompt": "x"}, headers={"x-api-key": SECRETS["alice"]}
        )
        assert tokenized.status_code == 404

    asyncio.run(scenario())


def test_a_model_off_the_list_looks_like_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", {**CHAT, "keep_alive": 5}),
            ("/v1/embeddings", {"input": "x"}),
            ("/tokenize", {"prompt": "x"}),
            ("/models/load", {}),
            ("/models/unload", {}),
            ("/models/sleep", {}),
            ("/models/wake", {}),
            ("/models/plan", {}),
            ("/models/profile", {}),
        ):
            answers = []
            for model in ("other", "othex"):
                found = await server.client.post(
                    path, json={**body, "model": model}, headers={"x-api-key": SECRETS["lead"]}
                )
                answers.append((found.status_code, found.text.replace(model, "…")))
            assert answers[0] == answers[1], path
            assert answers[0][0] == 404
            assert "mean" not in answers[0][1]
        assert server.launcher.workers == []

    asyncio.run(scenario())


def test_a_list_binds_the_views_of_memory_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        for model in ("other", "demo"):
            await server.manager.load(model)
        processes = (await get(server, "lead", "/api/ps")).json()["models"]
        lives = (await get(server, "lead", "/models")).json()["data"]
        assert [model["name"] for model in processes] == [model["id"] for model in lives] == ["demo"]
        assert len((await get(server, "root", "/models")).json()["data"]) == 3

    asyncio.run(scenario())


def test_a_list_binds_the_events_and_what_a_reload_tells(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        headers = {"x-api-key": SECRETS["lead"]}
        async with server.connected("/models/sse", None, headers, method="GET") as connection:
            await connection.until('"demo"')
            await server.manager.load("other")
            server.catalog = Catalog(models={"demo": server.catalog.models["demo"]})
            reloaded = await server.client.post("/models/reload", headers=headers)
            assert reloaded.json() == {"success": True, "added": [], "removed": [], "changed": []}
            await server.manager.load("demo")
            await connection.until('"ready"')
            assert {event["model"] for event in events(connection.text)} == {"demo"}

    asyncio.run(scenario())


TOKENIZING = (
    ("/tokenize", {"model": "demo", "prompt": "x"}),
    ("/detokenize", {"model": "demo", "tokens": [120]}),
    ("/v1/messages/count_tokens", CHAT),
    ("/api/v1/messages/count_tokens", CHAT),
)


@pytest.mark.parametrize(("path", "body"), TOKENIZING)
def test_tokenizing_is_asking_too(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)

        async def tokenize(who: str) -> httpx.Response:
            return await server.client.post(path, json=body, headers={"x-api-key": SECRETS[who]})

        statuses = [(await tokenize("alice")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]  # her requests a minute
        assert (await tokenize("root")).status_code == 403
        assert (await tokenize("lead")).status_code == 200

    asyncio.run(scenario())


def test_requests_at_once_count_those_that_tokenize(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        due, may_come = server.hold_files()
        body = {"model": "demo", "prompt": "x"}
        headers = {"x-api-key": SECRETS["carol"]}
        first = asyncio.create_task(server.client.post("/tokenize", json=body, headers=headers))
        await due.wait()
        assert (await server.client.post("/tokenize", json=body, headers=headers)).status_code == 429
        assert (await ask(server, "carol")).status_code == 429
        may_come.set()
        assert (await first).status_code == 200
        assert (await server.client.post("/tokenize", json=body, headers=headers)).status_code == 200

    asyncio.run(scenario())


def test_scopes_divide_administration_from_inference(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = server_of(tmp_path)
        assert (await get(server, "root", "/models")).status_code == 200
        assert (await get(server, "alice", "/models")).status_code == 403
        assert (await ask(server, "root")).status_code == 403
        assert (await server.client.post("/v1/chat/completions", json=CHAT)).status_code == 401

    asyncio.run(scenario())
