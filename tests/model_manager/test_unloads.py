"""Unloading by request."""

from __future__ import annotations

import asyncio

import pytest

from inference_server import errors
from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import FakeLauncher, build_house, spawn
from tests.model_manager.virtual_time import run, settle


def test_unloading_waits_for_leases_while_new_acquirers_wait_for_the_reload() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        holder = spawn(house.use("a", hold_s=10))
        await asyncio.sleep(3)
        first = house.launcher.workers["a"]
        unload = spawn(house.manager.unload("a"))
        again = spawn(house.manager.unload("a"))
        newcomer = spawn(house.use("a", hold_s=1))
        await asyncio.sleep(1)
        assert house.state("a") is S.DRAINING
        assert not first.closed.done()
        await asyncio.gather(holder, unload, again)
        assert first.num_stops == 1
        await newcomer
        assert house.state("a") is S.READY
        assert house.launcher.launched == ["a", "a"]

    run(scenario())


@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.5])
def test_unloading_a_model_that_is_being_loaded_stops_the_load_and_tells_its_waiters(after_s: float) -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        waiter = spawn(house.use("a"))
        await asyncio.sleep(after_s)
        await settle()
        await asyncio.gather(house.manager.unload("a"), house.manager.unload("a"))
        assert house.launcher.alive == set()
        with pytest.raises(errors.ModelLoadFailed, match="unloaded by request"):
            await waiter
        assert house.state("a") is S.UNLOADED
        assert house.manager.budget.reserved_bytes("cpu") == 0
        await house.use("a")

    run(scenario())


def test_the_bytes_of_an_aborted_load_are_free_only_when_its_process_is_gone() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, launcher=FakeLauncher(kill_s=5))
        waiter = spawn(house.use("a"))
        await asyncio.sleep(1.5)
        first, second = spawn(house.manager.unload("a")), None
        await asyncio.sleep(1)
        second = spawn(house.manager.unload("a"))  # must not cut the first one's wait short
        await asyncio.sleep(1)
        assert house.manager.budget.reserved_bytes("cpu") == 10
        await asyncio.gather(first, second)
        assert house.manager.budget.reserved_bytes("cpu") == 0
        await asyncio.wait({waiter})
        assert isinstance(waiter.exception(), errors.ModelLoadFailed)

    run(scenario())


def test_unloading_what_is_not_loaded_does_nothing_and_clears_a_failure() -> None:
    async def scenario() -> None:
        launcher = FakeLauncher(prepare_errors={"a": [errors.FetchFailed("gone")]})
        house = build_house({"a": 10}, launcher=launcher)
        await house.manager.unload("a")
        with pytest.raises(errors.ModelLoadFailed):
            await house.manager.load("a")
        await house.manager.unload("a")
        assert house.state("a") is S.UNLOADED
        assert house.manager.status("a").failure is None

    run(scenario())


def test_a_cancelled_unload_goes_on() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        unload = spawn(house.manager.unload("a"))
        await settle()
        unload.cancel()
        await asyncio.sleep(2)
        assert house.state("a") is S.UNLOADED

    run(scenario())
