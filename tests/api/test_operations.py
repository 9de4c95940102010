"""Health, metrics, overload and the lifecycle routes, over a model that the test controls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference_server import errors
from inference_server.api.routes.metrics import memory_by_kind
from inference_server.config.catalog import ModelSpec
from inference_server.model_manager.states import ModelState
from inference_server.worker.protocol import Progress
from tests.api.server import Server, run
from tests.generation.fakes import until

KINDS = ("weights", "kv", "workspace")
DEMO = ModelSpec(name="demo", source="scripted", preload=True, max_model_len=256)


def test_ready_waits_for_the_preload_and_ends_with_the_drain_while_live_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False, demo=DEMO)

        async def statuses() -> list[int]:
            paths = ("/health/live", "/livez", "/health/ready", "/readyz", "/health", "/health/startup")
            return [(await server.client.get(path)).status_code for path in paths]

        await server.manager.start()
        await server.launcher.launching.wait()
        server.launcher.report(Progress(stage="load", fraction=0.5))
        assert await statuses() == [200, 200, 503, 503, 503, 503]
        (model,) = (await server.client.get("/health/startup")).json()["models"]
        assert (model["model"], model["phase"], model["fraction"]) == ("demo", "load", 0.5)
        server.launcher.may_launch.set()
        await server.manager.preload_done.wait()
        assert await statuses() == [200] * 6
        await server.manager.unload("demo")
        assert await statuses() == [200] * 6  # it has been resident once
        page = (await server.client.get("/metrics")).text
        assert "helixflow_draining 0.0" in page
        assert "helixflow_shutdown_left_seconds 30.0" in page
        server.door.shut_down()
        assert await statuses() == [200, 200, 503, 503, 503, 503]
        page = (await server.client.get("/metrics")).text
        assert "helixflow_draining 1.0" in page
        assert "helixflow_shutdown_left_seconds 2" in page  # 29 and a fraction
        refused = await server.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        assert refused.headers["x-helixflow-error"] == "shutting_down"

    run(scenario())


def test_a_server_that_says_it_will_leave_is_not_ready_still_serves_and_keeps_no_connection(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        await server.warm()
        await server.manager.start()
        assert "connection" not in (await server.client.get("/health/ready")).headers
        server.door.announce_leaving()
        not_ready = await server.client.get("/health/ready")
        assert (not_ready.status_code, not_ready.headers["connection"]) == (503, "close")
        served = await server.chat()
        assert (served.status_code, served.headers["connection"]) == (200, "close")
        assert (await server.client.post("/models/load", json={"model": "other"})).status_code == 200
        server.door.shut_down()
        for refused in (
            await server.chat(),
            await server.client.post("/models/load", json={"model": "demo"}),
            await server.client.post("/models/wake", json={"model": "demo"}),
        ):
            assert (refused.status_code, refused.headers["connection"]) == (503, "close")
            assert refused.headers["x-helixflow-error"] == "shutting_down"

    run(scenario())


def test_without_preloads_a_server_is_ready_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        assert (await server.client.get("/health/ready")).status_code == 503
        await server.manager.start()
        assert (await server.client.get("/health/ready")).status_code == 200

    run(scenario())


def test_a_scrape_shows_the_moment_and_wakes_no_model(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        waiting = [asyncio.create_task(server.chat()) for _ in range(3)]
        await until(lambda: server.door.num_requests == 3)
        page = (await server.client.get("/metrics")).text
        assert 'vllm:num_requests_waiting{model_name="demo"} 3.0' in page
        assert 'helixflow_model_state{model="other",state="unloaded"} 1.0' in page
        assert "active_connections 4.0" in page
        server.launcher.may_launch.set()
        await asyncio.gather(*waiting)
        page = (await server.client.get("/metrics")).text
        assert 'vllm:num_requests_waiting{model_name="demo"} 0.0' in page
        assert 'vllm:request_success_total{finished_reason="stop",model_name="demo"} 3.0' in page
        line = 'endpoint="/v1/chat/completions",method="POST",status="200"} 3.0'
        assert line in page
        assert len(server.launcher.workers) == 1

    run(scenario())


def test_no_label_is_made_of_what_a_client_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        await server.chat(model="evil-model")
        for path in ("/evil-path", "/v1/evil-path", "/v1/models/evil-model", "/api/v1/chat/evil"):
            await server.client.get(path)
        await server.client.request("EVIL", "/v1/models")
        page = (await server.client.get("/metrics")).text
        assert "evil" not in page.lower()

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_burst_beyond_the_queue_is_429_with_retry_after_and_the_rest_is_served(
    tmp_path: Path, stream: bool
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, max_num_seqs=4, max_num_queued_reqs=8)
        worker = await server.warm()
        worker.gate = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(server.chat(stream=stream)) for _ in range(40)]
        await until(lambda: sum(task.done() for task in tasks) == 28)
        for _ in range(12 * 14):
            worker.gate.release()
        responses = await asyncio.gather(*tasks)
        refused = [response for response in responses if response.status_code == 429]
        assert sorted(response.status_code for response in responses) == [200] * 12 + [429] * 28
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        assert all(response.json()["error"]["code"] == "queue_full" for response in refused)

    run(scenario())


def test_models_are_loaded_and_unloaded_by_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)

        async def status() -> str:
            return str((await server.client.get("/v1/models/demo")).json()["status"])

        assert await status() == "unloaded"
        loaded = await server.client.post("/models/load", json={"model": "gpt-3.5-turbo"})
        assert loaded.json() == {"success": True}
        assert await status() == "loaded"
        (first, *_) = (await server.client.get("/models")).json()["data"]
        assert (first["id"], first["num_leases"], first["aliases"]) == ("demo", 0, ["gpt-3.5-turbo"])
        assert (await server.client.post("/models/unload", json={"model": "demo"})).json() == {
            "success": True
        }
        assert await status() == "unloaded"
        assert (await server.client.post("/models/load", json={"model": "nope"})).status_code == 404
        assert (await server.client.post("/models/load", json={"model": "demo", "x": 1})).status_code == 400
        server.launcher.launch_error = errors.InsufficientMemory("too big")
        failed = await server.client.post("/models/load", json={"model": "demo"})
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "insufficient_memory")
        assert await status() == "failed"

    run(scenario())


def test_a_prefix_before_all_paths_changes_neither_access_nor_labels(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, root_path="/llm", api_key="k")
        server.client._transport.root_path = "/llm"  # type: ignore[attr-defined]
        assert (await server.client.get("/llm/health/live")).status_code == 200
        assert (await server.client.get("/llm/v1/models")).status_code == 401
        opened = await server.client.get("/llm/v1/models", headers={"x-api-key": "k"})
        assert opened.status_code == 200
        page = (await server.client.get("/llm/metrics")).text
        assert 'endpoint="/v1/models",method="GET",status="401"' in page

    run(scenario())


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "null"},
        {"origin": "http://[::1"},
        {"origin": "http://localhost:9"},
        {"origin": "file://localhost:8000"},
        {"origin": ""},
        {"host": ""},
        {"host": "evil"},
    ],
)
def test_odd_origins_and_hosts_are_refused_and_break_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).client.get("/v1/models", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")

    run(scenario())


def test_a_key_that_is_not_ascii_opens_by_its_utf8_bytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, api_key="schlüssel")
        right = {b"authorization": "Bearer schlüssel".encode()}
        assert (await server.client.get("/v1/models", headers=right)).status_code == 200  # type: ignore[arg-type]

    run(scenario())


def test_the_kinds_of_a_models_memory_add_up_to_its_reservation(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        await server.warm()
        await server.client.get("/metrics")
        memory = "helixflow_model_memory_bytes"
        kinds = {kind: server.sample(memory, model="demo", device="cpu", kind=kind) for kind in KINDS}
        assert sum(kinds.values()) == server.manager.status("demo").memory_bytes > 0
        await server.manager.unload("demo")
        await server.client.get("/metrics")
        assert all(server.sample(memory, model="demo", device="cpu", kind=kind) == 0 for kind in KINDS)

    run(scenario())


def test_a_model_that_sleeps_beside_its_gpu_has_its_weights_on_the_host() -> None:
    plan = SimpleNamespace(device="cuda:0", weights_bytes=800, kv_cache_bytes=500)
    held = {"cpu": 900, "cuda:0": 300}
    status = SimpleNamespace(name="demo", state=ModelState.SLEEPING, plan=plan, bytes_by_device=held)
    assert memory_by_kind(status) == {  # type: ignore[arg-type]
        ("demo", "cpu", "weights"): 800,
        ("demo", "cpu", "kv"): 0,
        ("demo", "cpu", "workspace"): 100,
        ("demo", "cuda:0", "weights"): 0,
        ("demo", "cuda:0", "kv"): 0,
        ("demo", "cuda:0", "workspace"): 300,
    }


def test_a_fault_that_nobody_has_foreseen_is_counted_and_answered_as_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).fail_after = (0, ValueError("/secret/path"))  # type: ignore[assignment]
        failed = await server.chat(headers={"x-request-id": "abc-123"})
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
        assert failed.headers["x-request-id"] == "abc-123"
        assert failed.headers["x-helixflow-error"] == "internal_error"
        labels = {"method": "POST", "endpoint": "/v1/chat/completions"}
        count = "api_request_duration_seconds_count"
        assert server.sample(count, **labels, status="500") == 1
        assert server.sample(count, **labels, status="499") == 0
        assert server.sample("active_connections") == 0

    run(scenario())
    assert "secret" in caplog.text
    assert "abc-123" in caplog.text
