"""How long an idle model stays."""

from __future__ import annotations

import asyncio

import pytest

from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import FakeLauncher, build_house, spawn
from tests.model_manager.virtual_time import run, settle


def test_an_idle_model_is_unloaded_when_its_time_since_the_last_lease_is_over() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, a={"keep_alive_s": 60.0})
        await house.use("a", hold_s=100.0)  # a long answer counts from its last byte
        await asyncio.sleep(50)
        assert house.manager.status("a").expires_in_s == pytest.approx(10.0)
        assert house.manager.status("a").idle_s == pytest.approx(50.0)
        await house.use("a")
        await asyncio.sleep(59)
        assert house.state("a") is S.READY
        await asyncio.sleep(2)
        assert house.state("a") is S.UNLOADED
        assert house.recorder.evictions == [("a", "idle")]

    run(scenario())


def test_a_model_without_a_limit_stays() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        assert house.manager.status("a").expires_in_s is None
        await asyncio.sleep(1e6)
        assert house.state("a") is S.READY

    run(scenario())


@pytest.mark.parametrize("protection", ["pinned", "preload"])
def test_pinned_and_preloaded_models_never_expire(protection: str) -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, a={"keep_alive_s": 5.0, protection: True})
        async with house.acquire("a", keep_alive_s=1.0):
            pass
        await asyncio.sleep(1000)
        assert house.state("a") is S.READY

    run(scenario())


@pytest.mark.parametrize(("keep_alive_s", "stays_s"), [(0.0, 0.0), (5.0, 5.0), (None, 60.0), (-1.0, 1e5)])
def test_the_last_request_decides_how_long_the_model_stays(
    keep_alive_s: float | None, stays_s: float
) -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, launcher=FakeLauncher(stop_s=0.0), a={"keep_alive_s": 60.0})
        async with house.acquire("a", keep_alive_s=3.0), house.acquire("a", keep_alive_s=keep_alive_s):
            pass  # the first one to come is the last one to leave
        assert house.manager.status("a").expires_in_s == pytest.approx(3.0)
        async with house.acquire("a", keep_alive_s=keep_alive_s):
            pass
        assert house.state("a") is (S.READY if stays_s else S.DRAINING)
        await asyncio.sleep(max(0.05, stays_s - 0.1))
        assert house.state("a") is (S.READY if stays_s else S.UNLOADED)
        await asyncio.sleep(0.2)
        assert house.state("a") is (S.READY if keep_alive_s == -1.0 else S.UNLOADED)

    run(scenario())


def test_a_model_expires_also_if_nobody_came_for_it_after_its_load() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, a={"keep_alive_s": 5.0})
        impatient = spawn(house.use("a"))
        await asyncio.sleep(1.5)
        impatient.cancel()
        await asyncio.sleep(1)
        assert house.state("a") is S.READY
        await asyncio.sleep(6)
        assert house.state("a") is S.UNLOADED

    run(scenario())


def test_a_request_in_time_keeps_it() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10}, a={"keep_alive_s": 5.0})
        await house.use("a")
        await asyncio.sleep(4)
        holder = spawn(house.use("a", hold_s=20.0))
        await asyncio.sleep(10)
        await settle()
        assert house.state("a") is S.READY
        assert house.manager.status("a").expires_in_s is None
        await holder

    run(scenario())
