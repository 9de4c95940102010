"""What is known of how long loads take, and what is told to those who wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from inference_server import errors
from inference_server.config.catalog import ModelSpec
from inference_server.model_manager.load_times import BASE_S, DEFAULT_BYTES_PER_S, LoadTimes
from inference_server.types import MemoryReport
from tests.model_manager.fakes import FakeLauncher, build_house, spawn
from tests.model_manager.virtual_time import run

A, B = ModelSpec(name="a", source="a"), ModelSpec(name="b", source="b")


def test_before_anything_is_measured_bytes_and_a_usual_disk_decide() -> None:
    assert LoadTimes().estimate_s(A, int(2 * DEFAULT_BYTES_PER_S)) == BASE_S + 2.0


def test_a_model_s_own_times_come_first_and_the_newest_counts_most() -> None:
    times = LoadTimes()
    times.record(A, 4.0, 100)
    assert times.estimate_s(A, 999) == 4.0
    times.record(A, 2.0, 100)
    assert times.estimate_s(A, 999) == 3.0
    assert times.estimate_s(ModelSpec(name="a", source="a", quantization="int8"), 0) == BASE_S


def test_other_models_are_estimated_by_the_rate_that_was_measured() -> None:
    times = LoadTimes()
    times.record(A, BASE_S + 2.0, 1000)
    assert times.estimate_s(B, 3000) == pytest.approx(BASE_S + 6.0)


def test_times_survive_the_process_and_a_damaged_file_is_an_empty_one(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "load-times.json"

    async def measure() -> None:
        LoadTimes(file).record(A, 7.0, 100)
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(measure())
    assert LoadTimes(file).estimate_s(A, 0) == 7.0
    file.write_text("{")
    assert LoadTimes(file).estimate_s(A, 0) == BASE_S


def test_a_load_is_measured_from_its_launch_and_tells_later_waiters_when_to_come_again() -> None:
    async def scenario() -> None:
        times = LoadTimes()
        house = build_house({"a": 10}, launcher=FakeLauncher(launch_s=40.0), load_times=times)
        await house.manager.load("a")
        assert times.estimate_s(house.manager.catalog.models["a"], 0) == 40.0
        assert house.manager.retry_after_s("a") == 1.0
        await house.manager.unload("a")
        assert house.manager.retry_after_s("a") == 40.0
        waiter = spawn(house.use("a"))
        await asyncio.sleep(15)
        assert house.manager.retry_after_s("a") == pytest.approx(25.0)
        with pytest.raises(errors.ModelLoading, match="in about 20 s") as caught:
            await house.use("a", wait_s=5.0)
        assert caught.value.retry_after_s == pytest.approx(20.0)
        await waiter

    run(scenario())


def test_a_download_s_rest_is_judged_by_its_progress() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, launcher=FakeLauncher(prepare_s=1000.0))
        waiter = spawn(house.use("a"))  # says at once that half is done
        await asyncio.sleep(30)
        assert house.manager.retry_after_s("a") == pytest.approx(30.0 + BASE_S)
        waiter.cancel()
        await house.manager.stop()

    run(scenario())


def test_what_a_model_really_takes_is_compared_with_its_plan() -> None:
    async def scenario() -> None:
        memory = MemoryReport(weights_bytes=2, kv_cache_bytes=1, workspace_bytes=50, rss_bytes=99)
        house = build_house({"a": 10}, launcher=FakeLauncher(memory=memory))
        await house.use("a")
        assert house.recorder.estimates == [("a", 0.5)]  # the fakes plan 1 + 1

    run(scenario())


def test_only_requests_that_had_to_wait_are_measured() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        await house.use("a")
        assert house.recorder.waits == [("a", 2.0)]

    run(scenario())
