"""What happens between two other things: waiters leave, entries change, workers die."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

from inference_server import errors
from inference_server.config.catalog import Catalog
from inference_server.config.settings import Settings
from inference_server.model_manager.states import ModelState
from tests.model_manager.fakes import FakeLauncher, FakeWorker, House, build_house, spawn
from tests.model_manager.virtual_time import run, settle


async def leave(task: asyncio.Task[Any]) -> None:
    """A client disconnects."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def asleep_beside_a_user() -> tuple[House, asyncio.Task[Any]]:
    """`a` sleeps, and waits for the memory that a user of `b` keeps for 50 s; the user's task."""
    house = build_house(
        {"a": 10, "b": 10}, budget=12, launcher=FakeLauncher(can_sleep=True), asleep={"a": {"cpu": 2}}
    )
    await house.use("a")
    await house.manager.sleep("a")
    user = spawn(house.use("b", hold_s=50))
    await asyncio.sleep(5)
    assert (house.state("a"), house.state("b")) == (ModelState.SLEEPING, ModelState.READY)
    return house, user


def catalog_of(house: House, *names: str, **changes: Any) -> Catalog:
    """Some of the house's models, `a` with changes."""
    old = house.manager.catalog
    models = {name: old.models[name] for name in names}
    if changes:
        models["a"] = msgspec.structs.replace(models["a"], **changes)
    return Catalog(models=models, memory=old.memory)


def test_in_order_of_arrival_who_comes_first_after_another_left_has_its_turn() -> None:
    async def main() -> None:
        models = {"a": 10, "b": 10, "c": 10}
        house = build_house(models, budget=20, settings=Settings(collate=False))
        await house.use("c")
        users = [spawn(house.use("c", hold_s=50)), spawn(house.use("b", hold_s=50))]
        await asyncio.sleep(3)
        first_for_a = spawn(house.use("a"))
        await asyncio.sleep(2)
        assert (house.state("b"), house.state("c")) == (ModelState.READY, ModelState.DRAINING)
        for_b = spawn(house.use("b"))  # comes after the first for a
        await asyncio.sleep(1)
        second_for_a = spawn(house.use("a"))
        await asyncio.sleep(1)
        assert not for_b.done()
        await leave(first_for_a)
        await asyncio.wait_for(for_b, 1)  # and before the second
        await asyncio.gather(*users, second_for_a)

    run(main())


def test_a_model_that_is_removed_while_it_waits_to_wake_is_gone() -> None:
    async def main() -> None:
        house, user = await asleep_beside_a_user()
        waking = spawn(house.use("a"))
        await settle()
        house.manager.reload(catalog_of(house, "b"))
        with pytest.raises(errors.HelixFlowError):
            await waking
        await user
        await asyncio.sleep(5)
        assert [status.name for status in house.manager.snapshot()] == ["b"]
        assert house.manager.budget.reservation("a") == {}
        assert house.launcher.alive == {"b"}

    run(main())


def test_a_model_that_is_changed_while_it_waits_to_wake_does_not_come_back_as_it_was() -> None:
    async def main() -> None:
        house, user = await asleep_beside_a_user()
        waking = spawn(house.use("a"))
        await settle()
        house.manager.reload(catalog_of(house, "a", "b", max_model_len=64))
        await user
        await waking
        assert house.launcher.launched == ["a", "b", "a"]

    run(main())


def test_a_worker_that_dies_while_it_waits_to_wake_leaves_nothing_behind_when_nobody_wants_it() -> None:
    async def main() -> None:
        house, user = await asleep_beside_a_user()
        waking = spawn(house.use("a"))
        await settle()
        house.launcher.workers["a"].die()
        await leave(waking)
        await user
        assert house.state("a") is ModelState.UNLOADED
        assert house.manager.budget.reservation("a") == {}
        await house.use("a")

    run(main())


class ShortLived(FakeLauncher):
    """Its workers end as soon as they are ready."""

    async def launch(self, *arguments: Any) -> FakeWorker:
        worker = await super().launch(*arguments)
        worker.die()
        return worker


def test_many_who_see_the_same_failure_are_one_failure() -> None:
    async def main() -> None:
        house = build_house({"a": 10}, launcher=ShortLived())
        results = await asyncio.gather(*(house.use("a") for _ in range(8)), return_exceptions=True)
        assert {type(result) for result in results} == {errors.ModelLoadFailed}
        retry_in_s = house.manager.status("a").retry_in_s
        assert retry_in_s is not None
        assert retry_in_s <= 10

    run(main())
