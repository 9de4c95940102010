"""Models that sleep instead of leaving, and wake instead of being loaded."""

from __future__ import annotations

import asyncio

import pytest

from inference_server import errors
from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import FakeLauncher, House, build_house, now_s, spawn
from tests.model_manager.virtual_time import run, settle

ASLEEP = {"a": {"cpu": 3}, "b": {"cpu": 3}}


def warm(**launcher: object) -> House:
    return build_house(
        {"a": 20, "b": 20, "c": 30},
        launcher=FakeLauncher(can_sleep=True, **launcher),  # type: ignore[arg-type]
        asleep=ASLEEP,
    )


def test_a_model_that_makes_room_sleeps_if_what_it_keeps_fits_and_wakes_without_a_load() -> None:
    async def scenario() -> None:
        house = warm()
        await house.use("a")
        await house.use("b")
        assert (house.state("a"), house.manager.status("a").bytes_by_device) == (S.SLEEPING, {"cpu": 3})
        assert house.recorder.sleeps == ["a"]
        started_s = now_s()
        await house.use("a")
        assert now_s() - started_s == pytest.approx(0.5 + 0.5)  # b falls asleep, a wakes
        assert (house.state("a"), house.state("b")) == (S.READY, S.SLEEPING)
        assert house.manager.status("a").bytes_by_device == {"cpu": 20}
        assert house.launcher.launched == ["a", "b"]
        assert house.recorder.wakes == [("a", 0.5)]
        assert house.recorder.loads[-1] == ("a", 1.0, True, "ram")
        assert house.recorder.evictions == [("a", "memory"), ("b", "memory")]

    run(scenario())


def test_sleepers_are_unloaded_when_even_their_bytes_are_needed() -> None:
    async def scenario() -> None:
        house = warm()
        await house.use("a")
        await house.use("b")
        await house.use("c")
        assert house.launcher.alive == {"c"}
        assert house.manager.budget.reserved_bytes("cpu") == 30

    run(scenario())


def test_sleep_and_wake_by_request_wait_for_leases_and_may_be_repeated() -> None:
    async def scenario() -> None:
        house = warm()
        holder = spawn(house.use("a", hold_s=10.0))
        await asyncio.sleep(3)
        asked_s = now_s()
        await house.manager.sleep("a")
        assert now_s() - asked_s == pytest.approx(9.0 + 0.5)
        await house.manager.sleep("a")
        assert house.state("a") is S.SLEEPING
        await house.manager.wake("a")
        await house.manager.wake("a")
        assert house.state("a") is S.READY
        assert house.recorder.evictions == [("a", "request")]
        await holder

    run(scenario())


def test_who_cannot_sleep_or_is_not_there_says_so() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20}, asleep=ASLEEP)
        with pytest.raises(errors.SleepUnsupported, match="is unloaded"):
            await house.manager.sleep("a")
        await house.use("a")
        assert not house.manager.status("a").can_sleep
        with pytest.raises(errors.SleepUnsupported, match="it is a fake"):
            await house.manager.sleep("a")
        assert house.state("a") is S.READY

    run(scenario())


def test_a_model_that_fails_to_fall_asleep_is_unloaded() -> None:
    async def scenario() -> None:
        house = warm()
        await house.use("a")
        house.launcher.workers["a"].sleep_errors.append(errors.SleepUnsupported("no"))
        with pytest.raises(errors.SleepUnsupported, match="was unloaded"):
            await house.manager.sleep("a")
        assert (house.state("a"), house.manager.budget.reserved_bytes("cpu")) == (S.UNLOADED, 0)

    run(scenario())


@pytest.mark.parametrize("error", [errors.WorkerDied("gone"), errors.ModelLoadFailed("page cache")])
def test_a_model_that_does_not_wake_is_loaded_anew_for_the_same_request(error: Exception) -> None:
    async def scenario() -> None:
        house = warm()
        await house.use("a")
        await house.manager.sleep("a")
        house.launcher.workers["a"].wake_errors.append(error)
        await house.use("a")
        assert house.launcher.launched == ["a", "a"]
        assert house.manager.budget.reservation("a") == {"cpu": 20}

    run(scenario())


def test_a_death_in_sleep_frees_the_bytes() -> None:
    async def scenario() -> None:
        house = warm()
        await house.use("a")
        await house.manager.sleep("a")
        house.launcher.workers["a"].die()
        await settle()
        assert (house.state("a"), house.manager.budget.reserved_bytes("cpu")) == (S.UNLOADED, 0)

    run(scenario())


@pytest.mark.parametrize("after_s", [0.1, 0.9])  # while it falls asleep; while it wakes
def test_unloading_a_model_between_two_tiers_ends_its_process(after_s: float) -> None:
    async def scenario() -> None:
        house = warm()
        await house.use("a")
        asleep = spawn(house.manager.sleep("a"))
        await asyncio.sleep(0.6 if after_s > 0.5 else after_s)
        waiter = spawn(house.use("a")) if after_s > 0.5 else None
        await asyncio.sleep(0.2)
        await house.manager.unload("a")
        assert house.launcher.alive == set()
        assert house.manager.budget.reserved_bytes("cpu") == 0
        await asyncio.wait({asleep} | ({waiter} if waiter else set()))

    run(scenario())


def test_a_sleeper_that_waits_to_wake_gives_its_bytes_to_who_came_before() -> None:
    async def scenario() -> None:
        house = warm()
        await house.use("a")
        holder = spawn(house.use("b", hold_s=10.0))
        await asyncio.sleep(5)
        assert house.state("a") is S.SLEEPING
        first, second = spawn(house.use("c")), None
        await asyncio.sleep(1)
        second = spawn(house.use("a"))  # c needs all there is, a's sleeping bytes included
        await asyncio.wait_for(asyncio.gather(holder, first, second), 60)
        assert house.launcher.launched == ["a", "b", "c", "a"]

    run(scenario())


def test_on_a_gpu_the_weights_move_to_the_host_while_it_has_room() -> None:
    async def scenario() -> None:
        models = {name: {"cuda:0": 60, "cpu": 5} for name in ("a", "b", "c")}
        asleep = {name: {"cuda:0": 5, "cpu": 40} for name in models}
        house = build_house(
            models,
            budget={"cpu": 60, "cuda:0": 100},
            launcher=FakeLauncher(can_sleep=True),
            asleep=asleep,
        )
        await house.use("a")
        await house.use("b")
        assert (house.state("a"), house.state("b")) == (S.SLEEPING, S.READY)
        await house.use("c")  # the host holds one sleeper: a goes for good, b sleeps
        assert (house.state("a"), house.state("b"), house.state("c")) == (S.UNLOADED, S.SLEEPING, S.READY)
        await house.manager.unload("c")
        await house.use("b")
        assert house.manager.budget.reservation("b") == {"cuda:0": 60, "cpu": 5}

    run(scenario())
