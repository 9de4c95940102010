"""What a replica tells an endpoint picker, from snapshots of its models."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from inference_server.api.replica_load import replica_load
from inference_server.config.catalog import ModelSpec
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import DeviceUsage, ModelStatus
from inference_server.telemetry.metrics import Metrics
from inference_server.types import EngineStats
from inference_server.worker.protocol import Progress
from tests.api.server import Server, run

GIB = 1 << 30


class Plan:
    """As much of a plan as the picker's page looks at."""

    def __init__(self, num_bytes: int, kv_cache_bytes: int = 0) -> None:
        self.device = "cpu"
        self.bytes_by_device = {"cpu": num_bytes}
        self.kv_cache_bytes = kv_cache_bytes


def status(
    name: str,
    state: ModelState,
    *,
    plan: Plan | None = None,
    stats: EngineStats | None = None,
    aliases: tuple[str, ...] = (),
) -> ModelStatus:
    fields = dict.fromkeys(ModelStatus.__dataclass_fields__)
    fields |= {
        "name": name,
        "state": state,
        "spec": ModelSpec(name=name, source="scripted", aliases=aliases),
        "plan": plan,
        "stats": stats,
    }
    return ModelStatus(**fields)  # type: ignore[arg-type]


def test_aliases_are_published_with_their_model() -> None:
    load = replica_load([status("a", ModelState.READY, aliases=("x", "y"))], [], 0)
    assert load.resident == ["a", "x", "y"]


@pytest.mark.parametrize(
    ("state", "resident", "coming"),
    [
        (ModelState.READY, ["m"], []),
        (ModelState.FETCHING, [], ["m"]),
        (ModelState.LOADING, [], ["m"]),
        (ModelState.UNLOADED, [], []),
        (ModelState.DRAINING, [], []),
        (ModelState.SLEEPING, ["m"], []),
        (ModelState.FAILED, [], []),
    ],
)
def test_models_that_are_awake_or_asleep_are_resident(
    state: ModelState, resident: list[str], coming: list[str]
) -> None:
    load = replica_load([status("m", state)], [], 0)
    assert (load.resident, load.coming) == (resident, coming)


def test_cache_usage_is_weighted_by_the_bytes_of_each_cache() -> None:
    large = status("l", ModelState.READY, plan=Plan(4, 3 * GIB), stats=EngineStats(kv_cache_usage=0.5))
    small = status("s", ModelState.READY, plan=Plan(4, GIB), stats=EngineStats(kv_cache_usage=0.1))
    assert replica_load([large, small], [], 0).kv_cache_usage == pytest.approx(0.4)
    assert replica_load([], [], 0).kv_cache_usage == 0


def test_what_is_in_the_house_and_does_not_run_waits() -> None:
    running = status("m", ModelState.READY, stats=EngineStats(num_running=3))
    load = replica_load([running, status("n", ModelState.LOADING)], [], 5)
    assert (load.num_running, load.num_waiting) == (3, 2)


def test_room_is_counted_in_names_that_fit_without_an_eviction() -> None:
    statuses = [
        status("resident", ModelState.READY, plan=Plan(4 * GIB)),
        status("large", ModelState.UNLOADED, plan=Plan(3 * GIB)),
        status("small", ModelState.UNLOADED, plan=Plan(GIB), aliases=("tiny",)),
    ]
    usage = [DeviceUsage("cpu", budget_bytes=7 * GIB, reserved_bytes=4 * GIB)]
    assert replica_load(statuses, usage, 0).num_more == 2  # small and its alias; large no more
    full = [DeviceUsage("cpu", budget_bytes=7 * GIB, reserved_bytes=7 * GIB)]
    assert replica_load(statuses, full, 0).num_more == 0


def test_a_model_that_was_never_planned_counts_like_the_largest_that_was() -> None:
    statuses = [
        status("resident", ModelState.READY, plan=Plan(4 * GIB)),
        status("unknown", ModelState.UNLOADED),
    ]
    for free, expected in ((4 * GIB, 1), (3 * GIB, 0)):
        usage = [DeviceUsage("cpu", budget_bytes=4 * GIB + free, reserved_bytes=4 * GIB)]
        assert replica_load(statuses, usage, 0).num_more == expected


def test_a_scrape_during_a_load_costs_one_look_at_the_models_per_period_and_no_page_of_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    snapshot = ModelManager.snapshot

    def counted(manager: ModelManager) -> list[ModelStatus]:
        looks.append(None)
        return snapshot(manager)

    def never(metrics: Metrics) -> tuple[bytes, str]:
        raise AssertionError("the whole page was made for an endpoint picker")

    monkeypatch.setattr(ModelManager, "snapshot", counted)
    monkeypatch.setattr(Metrics, "render", never)
    now_s = 0.0

    async def scenario() -> None:
        nonlocal now_s
        server = Server(tmp_path, loads=False, api_key="k", clock=lambda: now_s)
        waiting = asyncio.create_task(server.chat(headers={"x-api-key": "k"}))
        await server.launcher.launching.wait()
        looks.clear()
        for tick in range(20):  # five pickers, each at 16 Hz (exact in binary), without a key
            now_s = tick / 16
            server.launcher.report(Progress(stage="load", fraction=tick / 20))
            pages = [(await server.client.get("/metrics/epp")).text for _ in range(5)]
            assert all('waiting_lora_adapters="demo,gpt-3.5-turbo"' in page for page in pages)
            assert all("vllm:num_requests_waiting 1\n" in page for page in pages)
        assert len(looks) == 20
        server.launcher.may_launch.set()
        assert (await waiting).status_code == 200
        now_s += 1
        page = (await server.client.get("/metrics/epp")).text
        assert 'running_lora_adapters="demo,gpt-3.5-turbo",waiting_lora_adapters=""' in page

    run(scenario())
