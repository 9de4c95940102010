"""The lifecycle routes: sleep, wake, reload, who may call them, Ollama's view, and the stream of events."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from inference_server import errors
from inference_server.api.routes.ollama import NEVER
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.errors import ConfigError
from inference_server.worker.protocol import Progress
from tests.api.server import Server, events, run
from tests.generation.fakes import until

SLEEPER = ModelSpec(name="demo", source="scripted", max_model_len=256, keep_alive_s=600.0)


async def post(server: Server, path: str, **body: Any) -> tuple[int, Any]:
    response = await server.client.post(path, json=body)
    return response.status_code, response.json()


# ---------------------------------------------------------------- sleep and wake


def test_a_model_that_cannot_sleep_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        status, body = await post(server, "/models/sleep", model="demo")
        assert (status, body["error"]["code"]) == (409, "sleep_unsupported")

    run(scenario())


def test_waking_an_unloaded_model_loads_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        assert await post(server, "/models/wake", model="gpt-3.5-turbo") == (200, {"success": True})
        assert (await server.client.get("/v1/models/demo")).json()["status"] == "loaded"
        assert (await post(server, "/models/wake", model="nope"))[0] == 404

    run(scenario())


def test_the_list_of_models_tells_of_their_lives(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=SLEEPER)
        await server.chat()
        (demo, other, *_) = (await server.client.get("/models")).json()["data"]
        assert demo["status"] == "loaded"
        assert 0 <= demo["last_used_s"] < 60
        assert 500 < demo["expires_in_s"] <= 600
        assert sum(demo["bytes_by_device"].values()) == demo["memory_bytes"] > 0
        assert (other["status"], other["last_used_s"], other["expires_in_s"]) == ("unloaded", None, None)

    run(scenario())


def test_a_failed_load_tells_when_it_may_be_tried_again_and_a_load_by_request_does_not_wait(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        server.launcher.launch_error = errors.ModelLoadFailed("it is broken")
        assert (await server.chat()).json()["error"]["code"] == "model_load_failed"
        (demo, *_) = (await server.client.get("/models")).json()["data"]
        assert demo["status"] == "failed"
        assert 0 < demo["retry_in_s"] <= 10
        server.launcher.launch_error = None
        again = await server.chat()
        assert (again.status_code, again.json()["error"]["code"]) == (503, "model_load_failed")
        assert 1 <= int(again.headers["retry-after"]) <= 10
        assert await post(server, "/models/load", model="demo") == (200, {"success": True})
        assert (await server.chat()).status_code == 200

    run(scenario())


# ---------------------------------------------------------------- reload


def test_a_reload_tells_what_has_changed_and_serves_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        await server.warm()
        server.catalog = Catalog(
            models={
                "demo": ModelSpec(name="demo", source="scripted", aliases=("fresh",), max_model_len=256),
                "new": ModelSpec(name="new", source="scripted", max_model_len=256),
                "embedder": server.catalog.models["embedder"],
            }
        )
        status, body = await post(server, "/models/reload")
        assert status == 200
        assert body == {"success": True, "added": ["new"], "removed": ["other"], "changed": ["demo"]}
        assert (await server.chat(model="fresh")).status_code == 200
        assert (await server.chat(model="new")).status_code == 200
        assert (await server.chat(model="other")).status_code == 404
        assert (await server.chat(model="gpt-3.5-turbo")).status_code == 404
        page = (await server.client.get("/metrics")).text
        assert 'model="new"' in page
        assert '"other"' not in page

    run(scenario())


def test_a_broken_configuration_is_refused_with_its_reason_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        def broken(_: Server) -> Catalog:
            raise ConfigError("models.yaml, line 3: unknown key `sorce`; did you mean `source`?")

        monkeypatch.setattr(Server, "read_catalog", broken)
        server = Server(tmp_path)
        status, body = await post(server, "/models/reload")
        assert (status, body["error"]["code"]) == (400, "invalid_value")
        assert "line 3: unknown key" in body["error"]["message"]
        assert (await server.chat()).status_code == 200

    run(scenario())


def test_a_reload_needs_no_body_and_takes_no_field(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        assert (await server.client.post("/models/reload")).status_code == 200
        assert (await post(server, "/models/reload", force=True))[0] == 400

    run(scenario())


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("GET", "/models/sse"),
        ("POST", "/models/load"),
        ("POST", "/models/unload"),
        ("POST", "/models/sleep"),
        ("POST", "/models/wake"),
        ("POST", "/models/profile"),
        ("POST", "/models/reload"),
        ("GET", "/v1"),
    ],
)
def test_a_key_for_inference_opens_no_other_route(tmp_path: Path, method: str, path: str) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, api_key="main", inference_api_key="asker")
        refused = await server.client.request(method, path, headers={"x-api-key": "asker"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert (await server.client.request(method, path)).status_code == 401

    run(scenario())


@pytest.mark.parametrize("key", ["main", "asker"])
def test_both_keys_may_ask_models(tmp_path: Path, key: str) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, api_key="main", inference_api_key="asker")
        headers = {"authorization": f"Bearer {key}"}
        assert (await server.chat(headers=headers)).status_code == 200
        for path in ("/v1/models", "/api/v1/models", "/api/ps", "/version"):
            assert (await server.client.get(path, headers=headers)).status_code == 200

    run(scenario())


# ---------------------------------------------------------------- Ollama's view


def test_ps_lists_what_is_in_memory_in_ollamas_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=SLEEPER)
        assert (await server.client.get("/api/ps")).json() == {"models": []}
        await server.chat()
        (model,) = (await server.client.get("/api/ps")).json()["models"]
        assert model["name"] == model["model"] == "demo"
        assert model["size"] == server.manager.status("demo").memory_bytes
        assert model["size_vram"] == 0
        assert model["context_length"] == 256
        assert model["details"] == {
            "parent_model": "",
            "format": "safetensors",
            "family": "scripted",
            "families": ["scripted"],
            "parameter_size": "",
            "quantization_level": "F32",
        }
        expires = datetime.fromisoformat(model["expires_at"])
        assert 500 < (expires - datetime.now(UTC)).total_seconds() <= 601

    run(scenario())


def test_ps_gives_a_model_in_use_its_whole_stay_and_a_pinned_one_no_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=SLEEPER)
        await server.warm()
        async with server.manager.acquire("demo"):
            (model,) = (await server.client.get("/api/ps")).json()["models"]
            left = datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)
            assert 590 < left.total_seconds() <= 601
        await server.manager.load("other")  # whose entry has no keep_alive
        (_, other) = (await server.client.get("/api/ps")).json()["models"]
        assert other["expires_at"] == NEVER

    run(scenario())


# ---------------------------------------------------------------- events


def told(text: str) -> list[tuple[str, str, str | None]]:
    return [(e["model"], e["event"], e["data"].get("state")) for e in events(text)]


def test_the_stream_begins_with_every_model_and_follows_a_load(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        async with server.connected("/models/sse", None, method="GET") as connection:
            await connection.until('"embedder"')
            assert [kind for _, kind, _ in told(connection.text)] == ["model_status"] * 3
            load = asyncio.create_task(server.chat())
            await server.launcher.launching.wait()
            server.launcher.report(Progress(stage="load", fraction=0.43))
            await connection.until('"fraction":0.43')
            server.launcher.may_launch.set()
            await load
            await connection.until('"state":"ready"')
            changes = [
                (model, state) for model, kind, state in told(connection.text) if kind == "status_change"
            ]
            assert changes == [("demo", "fetching"), ("demo", "loading"), ("demo", "ready")]

    run(scenario())


@pytest.mark.parametrize("is_loaded", [True, False])
def test_what_a_reload_brings_and_takes_is_told(tmp_path: Path, is_loaded: bool) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        if is_loaded:
            await server.manager.load("other")
        async with server.connected("/models/sse", None, method="GET") as connection:
            await connection.until('"embedder"')
            left = {name: spec for name, spec in server.catalog.models.items() if name != "other"}
            new = ModelSpec(name="new", source="scripted", max_model_len=256)
            server.catalog = Catalog(models={**left, "new": new})
            assert (await server.client.post("/models/reload")).status_code == 200
            await connection.until('"model_remove"')
            await connection.until('"model":"new"')
            assert ("other", "model_remove", None) in told(connection.text)
            assert ("new", "model_status", "unloaded") in told(connection.text)

    run(scenario())


def test_the_stream_ends_when_the_server_drains(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        async with server.connected("/models/sse", None, method="GET") as connection:
            await connection.until('"embedder"')
            server.door.shut_down()
            assert connection.task is not None
            await asyncio.wait_for(connection.task, 10)
            assert connection.sent[-1]["more_body"] is False

    run(scenario())


def test_a_reader_that_stops_reading_costs_the_newest_of_each_model_and_gets_that(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        async with server.connected("/models/sse", None, method="GET") as connection:
            await connection.until('"embedder"')
            load = asyncio.create_task(server.chat())
            await server.launcher.launching.wait()
            connection.may_send.clear()
            for number in range(5000):
                server.launcher.report(Progress(stage="load", fraction=number / 5000))
                if number % 500 == 0:
                    await asyncio.sleep(0)
            server.launcher.may_launch.set()
            await load
            connection.may_send.set()
            await connection.until('"state":"ready"')
            updates = [e for e in events(connection.text) if e["event"] == "status_update"]
            assert len(updates) < 20

    run(scenario())


def test_a_reader_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        async with server.connected("/models/sse", None, method="GET") as connection:
            await connection.until('"embedder"')
        await until(lambda: server.sample("active_connections") == 0)

    run(scenario())


def test_events_are_whole_json_documents(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        async with server.connected("/models/sse", None, method="GET") as connection:
            await connection.until('"embedder"')
            for line in filter(None, connection.text.split("\n\n")):
                assert set(json.loads(line.removeprefix("data: "))) == {"model", "event", "data"}

    run(scenario())


# ---------------------------------------------------------------- waiting for a model


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_for_a_load_until_the_deadline_is_told_when_to_come_again_and_the_load_goes_on(
    tmp_path: Path, stream: bool
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        late = await server.chat(stream=stream, timeout=0.05)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "model_loading")
        assert int(late.headers["retry-after"]) >= 1
        server.launcher.may_launch.set()
        await until(lambda: server.manager.status("demo").state == "ready")
        assert len(server.launcher.workers) == 1
        assert (await server.chat(stream=stream, timeout=5)).status_code == 200

    run(scenario())


def test_a_client_that_leaves_does_not_abort_the_load_that_it_began(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        async with server.connected("/models/load", {"model": "demo"}) as connection:
            await server.launcher.launching.wait()
            connection.leave()
            assert connection.task is not None
            connection.task.cancel()
        server.launcher.may_launch.set()
        await until(lambda: server.manager.status("demo").state == "ready")

    run(scenario())


# ---------------------------------------------------------------- plan


def test_a_plan_says_what_a_request_would_meet_and_loads_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        status, unknown = await post(server, "/models/plan", model="gpt-3.5-turbo")
        assert (status, unknown["outcome"], unknown["plan"]) == (200, "unknown", None)
        await server.warm()
        await server.manager.unload("demo")
        status, known = await post(server, "/models/plan", model="demo")
        assert (status, known["outcome"], known["victims"]) == (200, "fits", [])
        assert known["plan"]["max_model_len"] == 256
        assert known["memory"][0]["reserved_bytes"] == 0
        assert (await post(server, "/models/plan", model="nope"))[0] == 404

    run(scenario())
