"""Workers that end by themselves."""

from __future__ import annotations

import asyncio

import pytest

from inference_server import errors
from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import FakeLauncher, build_house, now_s, spawn
from tests.model_manager.virtual_time import run, settle


def test_a_worker_that_dies_frees_its_bytes_and_the_next_request_reloads() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        async with house.acquire("a") as lease:
            house.launcher.workers["a"].die()
            await settle()
            assert house.state("a") is S.UNLOADED
            assert house.manager.budget.reserved_bytes("cpu") == 0
            async with house.acquire("a") as other:
                assert other.worker is not lease.worker
                lease.release()  # belongs to the dead worker's stay
                assert house.manager.status("a").num_leases == 1
        assert house.recorder.deaths == ["a"]
        assert house.manager.status("a").num_leases == 0

    run(scenario())


def test_a_death_lets_the_next_waiter_for_memory_in() -> None:
    async def scenario() -> None:
        house = build_house({"a": 30, "b": 30})
        holder = spawn(house.use("a", hold_s=1000))
        await asyncio.sleep(3)
        waiter = spawn(house.use("b"))
        await asyncio.sleep(3)
        house.launcher.workers["a"].die()
        started_s = now_s()
        await waiter
        assert now_s() - started_s == pytest.approx(1)
        holder.cancel()

    run(scenario())


def test_a_worker_that_is_going_gets_no_request_and_its_successor_does() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        dying = house.launcher.workers["a"]
        dying.is_failing = True  # its connection is closed, and its process not gone yet
        waiter = spawn(house.use("a"))
        await asyncio.sleep(5)
        assert not waiter.done()
        dying.die()
        await waiter
        assert house.launcher.workers["a"] is not dying
        assert house.recorder.deaths == ["a"]

    run(scenario())


def test_an_acquire_in_the_turn_of_the_death_gets_a_new_worker() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        dead = house.launcher.workers["a"]
        dead.die()
        async with house.acquire("a") as lease:
            assert lease.worker is not dead

    run(scenario())


def test_a_model_that_dies_whenever_it_is_ready_is_given_up() -> None:
    class Doomed(FakeLauncher):
        async def launch(self, message: object, on_progress: object) -> object:  # type: ignore[override]
            worker = await super().launch(message, on_progress)  # type: ignore[arg-type]
            worker.die()
            return worker

    async def scenario() -> None:
        house = build_house({"a": 10}, launcher=Doomed())
        with pytest.raises(errors.ModelLoadFailed, match="ends whenever"):
            await house.use("a")
        assert len(house.launcher.launched) == 3
        assert house.manager.budget.reserved_bytes("cpu") == 0

    run(scenario())


def test_a_worker_that_dies_while_draining_ends_the_drain() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        holder = spawn(house.use("a", hold_s=1000))
        await asyncio.sleep(3)
        unload = spawn(house.manager.unload("a"))
        await settle()
        died_s = now_s()
        house.launcher.workers["a"].die()
        await unload
        assert now_s() == died_s
        assert house.state("a") is S.UNLOADED
        assert house.launcher.workers["a"].num_stops == 0
        assert house.manager.budget.reserved_bytes("cpu") == 0
        assert house.recorder.deaths == []
        holder.cancel()

    run(scenario())


def test_bytes_stay_reserved_until_the_process_is_gone_even_if_stopping_it_fails() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        worker = house.launcher.workers["a"]
        worker.stop_error = OSError("broken")
        unload = spawn(house.manager.unload("a"))
        await asyncio.sleep(100)
        assert house.state("a") is S.DRAINING
        assert house.manager.budget.reserved_bytes("cpu") == 10
        worker.die()
        await unload
        assert house.manager.budget.reserved_bytes("cpu") == 0

    run(scenario())
