"""Following what happens to models."""

from __future__ import annotations

import asyncio

from inference_server.worker.protocol import Progress
from tests.model_manager.fakes import build_house
from tests.model_manager.virtual_time import run


def test_a_watcher_hears_of_every_state_and_progress_in_order() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        with house.manager.watch() as events:
            await house.use("a")
            await house.manager.unload("a")
            heard = []
            async for status in events:
                heard.append((str(status.state), status.progress))
                if status.state == "unloaded":
                    break
        assert [state for state, _ in heard] == ["fetching", "loading", "ready", "draining", "unloaded"]
        assert heard[1] == ("loading", ("load", 0.1))  # the newest, for who reads late

    run(scenario())


def test_a_watcher_that_keeps_up_hears_of_each_step() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        heard: list[object] = []

        async def follow() -> None:
            with house.manager.watch() as events:
                while True:
                    heard.append((await anext(events)).progress)

        follower = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await house.use("a")
        follower.cancel()
        assert ("download", 0.5) in heard
        assert ("load", 0.1) in heard

    run(scenario())


def test_a_slow_reader_costs_no_more_than_a_snapshot_per_model_and_state() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        table = house.manager._lifecycle.table
        record = table.records["a"]
        with house.manager.watch() as events:
            for percent in range(1000):
                table.report(record, Progress(stage="download", fraction=percent / 1000))
            status = await anext(events)
            assert status.progress == ("download", 0.999)
            assert not events._unread  # type: ignore[attr-defined]
        assert not table.watchers

    run(scenario())
