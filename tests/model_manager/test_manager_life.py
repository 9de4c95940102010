"""The manager from its start to its end: preloads, drain, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from inference_server import errors
from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import FakeLauncher, House, build_house, now_s, spawn
from tests.model_manager.virtual_time import run, settle


def preloading(**launcher_fields: object) -> House:
    launcher = FakeLauncher(**launcher_fields)  # type: ignore[arg-type]
    return build_house(
        {"a": 10, "b": 10, "c": 10}, launcher=launcher, a={"preload": True}, c={"preload": True}
    )


def test_the_manager_is_ready_once_every_preloaded_model_has_been_in_memory() -> None:
    async def scenario() -> None:
        house = preloading()
        await house.manager.start()
        assert not house.manager.is_ready
        await house.manager.preload_done.wait()
        assert house.manager.is_ready
        assert (house.state("a"), house.state("b"), house.state("c")) == (S.READY, S.UNLOADED, S.READY)
        house.launcher.workers["a"].die()
        await settle()
        assert house.manager.is_ready

    run(scenario())


def test_a_manager_without_preloads_is_ready_at_once() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.manager.start()
        assert house.manager.is_ready

    run(scenario())


def test_a_preload_is_retried_twice() -> None:
    async def scenario() -> None:
        failures: list[Exception] = [errors.FetchFailed("network") for _ in range(2)]
        house = preloading(prepare_errors={"a": failures})
        await house.manager.start()
        await house.manager.preload_done.wait()
        assert house.manager.is_ready
        assert house.launcher.prepared == ["a", "a", "a", "c"]

    run(scenario())


def test_a_preload_that_keeps_failing_is_reported_and_the_manager_is_not_ready() -> None:
    async def scenario() -> None:
        failures: list[Exception] = [errors.FetchFailed("network") for _ in range(9)]
        house = preloading(prepare_errors={"a": failures})
        await house.manager.start()
        await house.manager.preload_done.wait()
        assert isinstance(house.manager.preload_error, errors.ModelLoadFailed)
        assert not house.manager.is_ready
        assert house.launcher.prepared == ["a"] * 3

    run(scenario())


def test_draining_refuses_new_requests_and_waits_for_those_there_are() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.manager.start()
        holder = spawn(house.use("a", hold_s=10))
        await asyncio.sleep(1)  # still loading: it has been let in, so it is served
        started_s = now_s()
        drain = spawn(house.manager.drain(30))
        await settle()
        assert not house.manager.is_ready
        with pytest.raises(errors.ShuttingDown):
            await house.use("a")
        assert await drain is True
        assert now_s() - started_s == pytest.approx(11)
        await holder

    run(scenario())


def test_draining_gives_up_at_its_time_limit() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        holder = spawn(house.use("a", hold_s=100))
        await asyncio.sleep(3)
        assert await house.manager.drain(5) is False
        holder.cancel()

    run(scenario())


def test_stopping_ends_loads_and_workers_whoever_uses_them() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10, "c": 30}, a={"preload": True})
        await house.manager.start()
        await house.manager.preload_done.wait()
        holder = spawn(house.use("a", hold_s=1000))
        await settle()
        loading, in_line = spawn(house.use("b")), spawn(house.use("c"))
        await asyncio.sleep(1.5)
        started_s = now_s()
        await house.manager.stop()
        assert now_s() - started_s < 5  # does not wait for the lease
        assert house.launcher.alive == set()
        assert house.manager.budget.reserved_bytes("cpu") == 0
        for waiter in (loading, in_line):
            with pytest.raises(errors.ShuttingDown):
                await waiter
        holder.cancel()
        await house.manager.stop()  # once more does no harm

    run(scenario())


async def in_use() -> House:
    house = build_house({"a": 10}, launcher=FakeLauncher(stop_s=5.0))
    spawn(house.use("a", hold_s=1000))
    await asyncio.sleep(3)
    return house


async def leaving() -> House:
    house = build_house({"a": 10}, launcher=FakeLauncher(stop_s=5.0))
    await house.use("a")
    spawn(house.manager.unload("a"))
    await asyncio.sleep(1)
    return house


def can_sleep() -> House:
    launcher = FakeLauncher(can_sleep=True, sleep_s=5.0, stop_s=5.0)
    return build_house({"a": 10}, launcher=launcher, asleep={"a": {"cpu": 2}})


async def falling_asleep() -> House:
    house = can_sleep()
    await house.use("a")
    spawn(house.manager.sleep("a"))
    await asyncio.sleep(1)
    return house


async def asleep() -> House:
    house = can_sleep()
    await house.use("a")
    await house.manager.sleep("a")
    return house


async def waking() -> House:
    house = await asleep()
    spawn(house.use("a"))
    await asyncio.sleep(1)
    return house


@pytest.mark.parametrize("begin", [in_use, leaving, falling_asleep, asleep, waking])
def test_no_worker_keeps_the_server_for_long(begin: Callable[[], Awaitable[House]]) -> None:
    async def scenario() -> None:
        house = await begin()
        started_s = now_s()
        await house.manager.stop()
        assert now_s() - started_s < 0.6
        assert house.launcher.alive == set()
        assert house.manager.budget.reserved_bytes("cpu") == 0
        users = asyncio.all_tasks() - {asyncio.current_task()}
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)

    run(scenario())


def test_a_worker_that_ends_in_time_is_not_killed() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, launcher=FakeLauncher(stop_s=0.2))
        await house.use("a")
        await house.manager.stop()
        assert await house.launcher.workers["a"].closed == "was stopped"

    run(scenario())


def test_stopping_during_a_preload_leaves_nobody_waiting_for_it() -> None:
    async def scenario() -> None:
        house = preloading()
        await house.manager.start()
        await house.manager.stop()
        await house.manager.preload_done.wait()
        assert house.launcher.alive == set()

    run(scenario())
