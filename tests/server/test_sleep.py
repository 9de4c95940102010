"""A real model asleep in a real server: its memory is back, and it wakes by itself for the next request."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from inference_server.checkpoints.native import native_cpu
from inference_server.config.catalog import ModelSpec, load_catalog
from inference_server.config.settings import Settings
from inference_server.model_manager.devices import cpu_flags
from inference_server.model_manager.overheads import OverheadStore
from inference_server.model_manager.plan import ModelPlan, plan_model
from tests.demo import demo_folder
from tests.server.running import RunningServer, running_server

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(native_cpu(cpu_flags()) is not None, reason="torch models do not sleep on a CPU"),
]
CONFIG = """
memory: {{host: {budget}}}
models:
  a: {{source: {folder}, quantization: int8, max_model_len: 512, kv_cache: {{tokens: 2048}}}}
  b: {{source: {folder}, quantization: gguf, max_model_len: 512, kv_cache: {{tokens: 2048}}}}
"""
WAKE_GOAL_S = 0.5


def write_config(folder: Path, budget: str) -> Path:
    path = folder / "models.yaml"
    path.write_text(CONFIG.format(folder=demo_folder(), budget=budget), encoding="utf-8")
    return path


def state(server: RunningServer, name: str) -> str:
    models = server.client.get("/models").json()["data"]
    return next(str(model["state"]) for model in models if model["id"] == name)


def private_bytes(server: RunningServer) -> int:
    """Of all processes of the server, what they hold for themselves alone."""
    total = 0
    for pid in server.children():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Private_Dirty:"):
                total += int(line.split()[1]) * 1024
    return total


def say(server: RunningServer, name: str) -> str:
    response = server.chat("What is the capital of France?", model=name, max_tokens=12, temperature=0)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def plan(spec: ModelSpec, cache_dir: Path) -> ModelPlan:
    settings = Settings(cache_dir=str(cache_dir))
    capacity = {"cpu": 1 << 40}
    return plan_model(spec, demo_folder(), settings, capacity, cpu_flags(), OverheadStore(cache_dir))


def measured_plans(config: Path, cache_dir: Path) -> list[ModelPlan]:
    """Both models' plans as a server knows them that has loaded both; a load that compiles does not count."""
    specs = load_catalog(config).models.values()
    for _ in range(2):
        with running_server(config, "--cache-dir", str(cache_dir)) as server:
            for name in ("a", "b"):
                say(server, name)
        plans = [plan(spec, cache_dir) for spec in specs]
        if all(one.is_measured for one in plans):
            break
    return plans


def test_a_model_sleeps_on_request_and_wakes_on_request_or_for_the_next_chat(tmp_path: Path) -> None:
    with running_server(write_config(tmp_path, "8GiB")) as server:
        expected = say(server, "a")
        awake = private_bytes(server)
        assert server.client.post("/models/sleep", json={"model": "a"}).status_code == 200
        assert state(server, "a") == "sleeping"
        assert private_bytes(server) < awake
        started_s = time.monotonic()
        assert server.client.post("/models/wake", json={"model": "a"}).status_code == 200
        assert state(server, "a") == "ready"
        assert time.monotonic() - started_s < 20 * WAKE_GOAL_S  # the goal itself is for a quiet machine
        assert say(server, "a") == expected
        server.client.post("/models/sleep", json={"model": "a"})
        assert say(server, "a") == expected


@pytest.mark.slow
def test_who_makes_room_for_another_sleeps_where_there_is_memory_for_that(tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    plans = measured_plans(write_config(tmp_path, "8GiB"), cache_dir)
    largest = max(one.bytes_by_device["cpu"] for one in plans)
    asleep = max(one.sleeping_bytes_by_device["cpu"] for one in plans)
    budget = largest + asleep + (8 << 20)
    assert budget < sum(one.bytes_by_device["cpu"] for one in plans)
    with running_server(write_config(tmp_path, str(budget)), "--cache-dir", str(cache_dir)) as server:
        expected, other = say(server, "a"), say(server, "b")
        assert (state(server, "a"), state(server, "b")) == ("sleeping", "ready")
        assert say(server, "a") == expected
        assert (state(server, "a"), state(server, "b")) == ("ready", "sleeping")
        assert say(server, "b") == other
        page = server.client.get("/metrics").text
        assert [line for line in page.splitlines() if 'source="ram"' in line and "_count" in line], page
