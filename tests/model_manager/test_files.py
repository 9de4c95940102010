"""Files for whoever wants a tokenizer only: one job for all who ask, and what a reload means for it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from inference_server import errors
from inference_server.config.catalog import Catalog
from tests.model_manager.fakes import FakeLauncher, House, build_house, spawn
from tests.model_manager.virtual_time import run


def change(house: House, **fields: Any) -> None:
    """A reload with another entry for `a`."""
    old = house.manager.catalog
    models = {**old.models, "a": msgspec.structs.replace(old.models["a"], **fields)}
    house.manager.reload(Catalog(models=models, memory=old.memory))


async def fetching(**launcher_fields: Any) -> tuple[House, asyncio.Task[str]]:
    """Somebody has asked for the files of `a` a second ago; they take ten."""
    house = build_house({"a": 10}, launcher=FakeLauncher(prepare_s=10.0, **launcher_fields))
    asker = spawn(house.manager.folder("a"))
    await asyncio.sleep(1)
    return house, asker


def test_many_who_ask_wait_for_one_job_and_the_model_is_loaded_from_what_it_brought() -> None:
    async def scenario() -> None:
        house, asker = await fetching()
        assert await house.manager.folder("a") == await asker == "folder-of-a"
        await house.use("a")
        assert house.launcher.prepared == ["a"]

    run(scenario())


def test_files_that_come_after_the_entry_has_another_source_are_not_the_models() -> None:
    async def scenario() -> None:
        house, asker = await fetching()
        change(house, source="new")
        assert await house.manager.folder("a") == "folder-of-new"
        assert await asker == "folder-of-a"
        async with house.acquire("a") as lease:
            assert lease.folder == "folder-of-new"
        assert house.launcher.prepared == ["a", "new"]

    run(scenario())


def test_a_model_is_loaded_from_its_new_source_whatever_a_fetch_of_the_old_one_brings() -> None:
    async def scenario() -> None:
        house, asker = await fetching()
        change(house, source="new")
        await asker
        async with house.acquire("a") as lease:
            assert lease.folder == "folder-of-new"

    run(scenario())


def test_the_failure_of_an_old_source_is_not_the_new_ones() -> None:
    async def scenario() -> None:
        house, asker = await fetching(prepare_errors={"a": [errors.FetchFailed("network")]})
        change(house, source="new")
        with pytest.raises(errors.ModelLoadFailed, match="network"):
            await asker
        assert house.manager.status("a").retry_in_s is None
        assert await house.manager.folder("a") == "folder-of-new"

    run(scenario())


def test_files_that_a_new_entry_needs_as_well_are_fetched_once() -> None:
    async def scenario() -> None:
        house, asker = await fetching()
        change(house, max_model_len=64)
        assert await house.manager.folder("a") == await asker
        await house.use("a")
        assert house.launcher.prepared == ["a"]

    run(scenario())


def test_who_waits_for_files_when_the_server_ends_is_told_so() -> None:
    async def scenario() -> None:
        house, asker = await fetching()
        await house.manager.stop()
        with pytest.raises(errors.ShuttingDown):
            await asker

    run(scenario())


def test_who_leaves_at_the_end_of_the_server_is_cancelled_all_the_same() -> None:
    async def scenario() -> None:
        house, asker = await fetching()
        asker.cancel()
        await house.manager.stop()
        with pytest.raises(asyncio.CancelledError):
            await asker

    run(scenario())
