"""Who gets memory, and who leaves for it."""

from __future__ import annotations

import asyncio

import pytest

from inference_server import errors
from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import build_house, now_s, spawn
from tests.model_manager.virtual_time import run, settle


def test_the_least_recently_used_idle_model_makes_room_and_is_gone_before_the_next_starts() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10, "c": 10, "d": 10})
        for name in ("a", "b", "c", "a"):
            await house.use(name)
            await asyncio.sleep(1)
        house.launcher.stop_s = 5
        waiter = spawn(house.use("d"))
        await asyncio.sleep(1.2)
        assert house.state("b") is S.DRAINING
        assert house.manager.budget.reserved_bytes("cpu") == 30
        assert "d" not in house.launcher.launched
        await waiter
        assert house.recorder.evictions == [("b", "memory")]
        assert house.launcher.alive == {"a", "c", "d"}

    run(scenario())


def test_a_model_larger_than_the_whole_budget_is_refused_at_once_with_both_numbers() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "huge": 31})
        await house.use("a")
        with pytest.raises(errors.InsufficientMemory, match=r"needs 31 B on cpu.*budget of 30 B"):
            await house.use("huge")
        assert house.state("a") is S.READY
        assert house.recorder.evictions == []

    run(scenario())


def test_a_leased_model_is_never_evicted_and_the_waiter_is_told_at_its_deadline() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 20})
        holder = spawn(house.use("a", hold_s=100))
        await asyncio.sleep(3)
        with pytest.raises(errors.InsufficientMemory, match="needs 20 B on cpu"):
            await house.use("b", wait_s=10)
        await settle()
        assert house.state("a") is S.READY
        assert house.state("b") is S.UNLOADED  # nobody waits any more: no eviction for nobody, later
        await holder
        await asyncio.sleep(10)
        assert house.recorder.evictions == []

    run(scenario())


def test_a_waiter_gets_its_memory_the_moment_the_last_lease_ends() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 20})
        holder = spawn(house.use("a", hold_s=10))
        await asyncio.sleep(3)
        started_s = now_s()
        await house.use("b", wait_s=60)
        assert now_s() - started_s == pytest.approx(9 + 0.5 + 1)  # rest of the lease, stop, launch
        await holder
        assert house.recorder.evictions == [("a", "memory")]

    run(scenario())


def test_waiters_for_memory_are_served_in_the_order_in_which_they_came() -> None:
    async def scenario() -> None:
        house = build_house({"a": 30, "big": 30, "small": 1})
        holder = spawn(house.use("a", hold_s=10))
        await asyncio.sleep(3)
        order: list[str] = []

        async def queue(name: str) -> None:
            async with house.acquire(name):
                order.append(name)
                await asyncio.sleep(1)

        big = spawn(queue("big"))
        await asyncio.sleep(1.5)
        small = spawn(queue("small"))
        await asyncio.gather(holder, big, small)
        assert order == ["big", "small"]

    run(scenario())


def test_a_freshly_loaded_model_is_not_evicted_before_its_waiters_have_used_it() -> None:
    async def scenario() -> None:
        house = build_house({"a": 30, "b": 30})
        await asyncio.gather(*(house.use(name, hold_s=1) for name in "abababab"))
        assert sorted(house.launcher.launched) == ["a", "b"]

    run(scenario())


def test_pinned_models_stay_and_who_cannot_fit_beside_them_is_refused_at_once() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 10, "c": 20}, a={"pinned": True})
        await house.use("a")
        await house.use("b")
        with pytest.raises(errors.InsufficientMemory, match="pinned"):
            await house.use("c")
        assert house.state("a") is S.READY
        assert house.state("b") is S.READY

    run(scenario())


def test_a_plan_is_made_after_the_fetch_for_what_is_not_pinned() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 5, "c": 5}, a={"pinned": True})
        for name in ("a", "b"):
            await house.use(name)
        waiter = spawn(house.use("c"))
        await asyncio.sleep(0.5)
        assert house.planned == {"a": {"cpu": 30}, "b": {"cpu": 10}}
        await waiter
        assert house.planned["c"] == {"cpu": 10}  # b may leave, a may not

    run(scenario())


def test_memory_that_other_programs_hold_is_not_promised_to_a_model() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10}, budget=30, free={"cpu": 30})
        house.machine.taken["cpu"] = 15
        await house.use("a")
        await house.use("b")  # fits the budget, but not what is free: a leaves
        assert house.recorder.evictions == [("a", "memory")]
        house.machine.taken["cpu"] = 25
        await house.manager.unload("b")
        with pytest.raises(errors.InsufficientMemory, match=r"needs 10 B on cpu, but only 5 B"):
            await house.use("a")

    run(scenario())


def test_a_model_on_a_gpu_takes_bytes_on_both_devices() -> None:
    async def scenario() -> None:
        models = {"g": {"cuda:0": 50, "cpu": 5}, "h": {"cuda:0": 60, "cpu": 5}, "c": 25}
        house = build_house(models, budget={"cpu": 30, "cuda:0": 100})
        await house.use("g")
        await house.use("c")
        await house.use("h")
        assert house.recorder.evictions == [("g", "memory")]
        assert house.manager.budget.reserved_bytes("cuda:0") == 60
        assert house.manager.budget.reserved_bytes("cpu") == 30

    run(scenario())
