"""Models whose load failed are left alone for a while, and only they."""

from __future__ import annotations

import asyncio

import pytest

from inference_server import errors
from inference_server.model_manager.cooldown import next_failure, remembered
from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import FakeLauncher, build_house, now_s
from tests.model_manager.virtual_time import run

OOPS = errors.ModelLoadFailed("the weights are damaged")


def test_the_cooldown_doubles_from_ten_seconds_to_five_minutes() -> None:
    failure, cooldowns = None, []
    for _ in range(8):
        failure = next_failure(OOPS, failure, 100.0, cools_down=True)
        cooldowns.append(failure.cooldown_s)
    assert cooldowns == [10, 20, 40, 80, 160, 300, 300, 300]
    assert next_failure(OOPS, failure, 0.0, cools_down=False).cooldown_s == 0


def test_the_remembered_error_says_when_to_come_again() -> None:
    failure = next_failure(OOPS, None, 100.0, cools_down=True)
    error = remembered(failure, 103.0)
    assert error.retry_after_s == 7.0
    assert error.message == "the weights are damaged (3 s ago; the next try is in 7 s)"


def test_requests_during_the_cooldown_get_the_error_at_once_and_others_are_unaffected() -> None:
    async def scenario() -> None:
        launcher = FakeLauncher(launch_errors={"a": [OOPS, OOPS]})
        house = build_house({"a": 10, "b": 10}, launcher=launcher)
        with pytest.raises(errors.ModelLoadFailed) as first:
            await house.use("a")
        assert first.value.retry_after_s == 10.0
        await asyncio.sleep(4)
        asked_s = now_s()
        with pytest.raises(errors.ModelLoadFailed, match="damaged") as second:
            await house.use("a")
        assert (now_s(), second.value.retry_after_s) == (asked_s, 6.0)
        assert house.manager.status("a").retry_in_s == 6.0
        assert house.manager.retry_after_s("a") == 6.0
        await house.use("b")
        await asyncio.sleep(6)
        with pytest.raises(errors.ModelLoadFailed) as third:
            await house.use("a")
        assert third.value.retry_after_s == 20.0
        await asyncio.sleep(20)
        await house.use("a")
        assert house.manager.status("a").failure is None
        assert launcher.launched == ["a", "b", "a", "a"]

    run(scenario())


def test_an_explicit_load_tries_again_at_once_and_success_resets_the_cooldown() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, launcher=FakeLauncher(launch_errors={"a": [OOPS]}))
        with pytest.raises(errors.ModelLoadFailed):
            await house.use("a")
        await house.manager.load("a")
        await house.manager.unload("a")
        house.launcher.launch_errors["a"] = [OOPS]
        with pytest.raises(errors.ModelLoadFailed) as again:
            await house.use("a")
        assert again.value.retry_after_s == 10.0

    run(scenario())


def test_a_refusal_of_memory_needs_no_cooldown() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        house.machine.taken["cpu"] = 25
        with pytest.raises(errors.InsufficientMemory):
            await house.use("a")
        house.machine.taken["cpu"] = 0
        await house.use("a")
        assert house.state("a") is S.READY

    run(scenario())


def test_running_out_of_memory_in_the_load_itself_has_one() -> None:
    async def scenario() -> None:
        errors_of_a: list[Exception] = [errors.InsufficientMemory("out of memory")]
        house = build_house({"a": 10}, launcher=FakeLauncher(launch_errors={"a": errors_of_a}))
        with pytest.raises(errors.InsufficientMemory):
            await house.use("a")
        with pytest.raises(errors.ModelLoadFailed, match="out of memory"):
            await house.use("a")

    run(scenario())
