"""Loads: one for all who want the model, what they hear of it, and how it fails."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from inference_server import errors
from inference_server.model_manager.states import ModelState as S
from inference_server.types import EngineStats
from inference_server.worker.protocol import Progress
from tests.model_manager.fakes import FakeLauncher, build_house, now_s, spawn
from tests.model_manager.virtual_time import run, settle


def test_a_model_goes_through_its_states_and_the_observer_hears_of_them() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        async with house.acquire("a") as lease:
            assert lease.spec.name == "a"
            assert lease.folder == "folder-of-a"
            assert lease.worker is house.launcher.workers["a"]
            assert house.manager.status("a").num_leases == 1
            lease.worker.on_step(EngineStats())
        assert house.manager.status("a").num_leases == 0
        assert house.recorder.states == [("a", S.FETCHING), ("a", S.LOADING), ("a", S.READY)]
        assert house.recorder.loads == [("a", 2.0, True, "hub")]
        assert house.recorder.steps == ["a"]
        usage = house.manager.device_usage()
        assert [(u.device, u.budget_bytes, u.reserved_bytes) for u in usage] == [("cpu", 30, 10)]

    run(scenario())


def test_a_model_is_found_by_its_alias_and_an_unknown_name_is_refused() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, a={"aliases": ("gpt",)})
        async with house.acquire("gpt") as lease:
            assert lease.spec.name == "a"
        with pytest.raises(errors.UnknownModel):
            await house.use("../../etc/passwd")

    run(scenario())


def test_a_hundred_acquirers_share_one_load() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await asyncio.gather(*(house.use("a") for _ in range(100)))
        assert house.launcher.launched == ["a"]
        assert house.launcher.prepared == ["a"]

    run(scenario())


def test_every_acquirer_hears_of_the_load_and_a_failing_listener_harms_nobody() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        heard: list[str] = []

        def listen(progress: Progress) -> None:
            heard.append(progress.stage)
            raise RuntimeError("a listener's fault")

        async with house.acquire("a", on_progress=listen):
            assert heard == ["download", "memory", "load"]

    run(scenario())


def test_a_late_acquirer_hears_at_once_how_far_the_load_is() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        first = spawn(house.use("a"))
        await asyncio.sleep(0.5)
        assert house.manager.status("a").progress == ("download", 0.5)
        heard: list[Progress] = []
        second = spawn(house.acquire("a", on_progress=heard.append).__aenter__())
        await settle()
        assert heard == [Progress(stage="download", fraction=0.5)]
        await asyncio.gather(first, second)
        assert house.manager.status("a").progress is None

    run(scenario())


def test_a_cancelled_acquirer_does_not_abort_the_load_of_others_or_its_own() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        impatient = spawn(house.use("a"))
        await asyncio.sleep(0.5)
        impatient.cancel()
        await settle()
        assert impatient.cancelled()
        assert house.state("a") is S.FETCHING
        await asyncio.sleep(2)
        assert house.state("a") is S.READY
        assert house.manager.status("a").num_waiting == 0

    run(scenario())


@pytest.mark.parametrize("num_turns", range(12))
def test_an_acquirer_cancelled_at_any_moment_leaves_no_lease_and_no_waiter(num_turns: int) -> None:
    async def scenario() -> None:
        launcher = FakeLauncher(prepare_s=0, launch_s=0)
        house = build_house({"a": 10}, launcher=launcher)
        task = spawn(house.use("a", hold_s=0))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await settle()
        status = house.manager.status("a")
        assert (status.num_leases, status.num_waiting) == (0, 0)
        assert status.state in (S.READY, S.UNLOADED)
        assert await house.manager.drain(0.1)

    run(scenario())


def test_a_failed_fetch_is_a_failed_load_for_everybody_and_can_be_tried_again() -> None:
    async def scenario() -> None:
        launcher = FakeLauncher(prepare_errors={"a": [errors.FetchFailed("disk full")]})
        house = build_house({"a": 10}, launcher=launcher)
        results = await asyncio.gather(house.use("a"), house.use("a"), return_exceptions=True)
        assert [type(result) for result in results] == [errors.ModelLoadFailed] * 2
        assert results[0] is not results[1]
        assert "disk full" in str(results[0])
        status = house.manager.status("a")
        assert status.state is S.FAILED
        assert "disk full" in (status.failure or "")
        await house.manager.load("a")
        assert house.state("a") is S.READY
        assert house.manager.status("a").failure is None
        assert [ok for _, _, ok, _ in house.recorder.loads] == [False, True]

    run(scenario())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.InsufficientMemory("out of memory"), errors.InsufficientMemory),
        (errors.ModelLoadFailed("no attention interface"), errors.ModelLoadFailed),
        (RuntimeError("/secret/path"), errors.ModelLoadFailed),
    ],
)
def test_a_failed_launch_gives_the_bytes_back(error: Exception, expected: type[Exception]) -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, launcher=FakeLauncher(launch_errors={"a": [error]}))
        with pytest.raises(expected) as caught:
            await house.use("a")
        assert "/secret" not in str(caught.value)
        assert house.manager.budget.reserved_bytes("cpu") == 0
        assert house.state("a") is S.FAILED
        await house.manager.load("a")
        assert house.manager.budget.reserved_bytes("cpu") == 10

    run(scenario())


def test_what_was_prepared_once_is_not_prepared_again_unless_the_load_failed() -> None:
    async def scenario() -> None:
        launcher = FakeLauncher(launch_errors={"b": [errors.ModelLoadFailed("damaged")]})
        house = build_house({"a": 10, "b": 10}, launcher=launcher)
        await house.use("a")
        await house.manager.unload("a")
        await house.use("a")
        with pytest.raises(errors.ModelLoadFailed):
            await house.use("b")
        await house.manager.load("b")
        assert launcher.prepared == ["a", "b", "b"]

    run(scenario())


def test_the_deadline_ends_the_wait_but_not_the_load() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        started_s = now_s()
        with pytest.raises(errors.ModelLoading):
            await house.use("a", wait_s=1.5)
        assert now_s() - started_s == pytest.approx(1.5)
        await asyncio.sleep(1)
        assert house.state("a") is S.READY

    run(scenario())


def test_a_deadline_that_has_passed_starts_no_load() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        with pytest.raises(errors.ModelLoading):
            await house.use("a", wait_s=-1)
        assert house.state("a") is S.UNLOADED

    run(scenario())
