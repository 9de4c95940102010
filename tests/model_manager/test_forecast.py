"""What a request for a model would meet, told beforehand: the same as what it then meets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.checkpoints.scripted import write_scripted_folder
from inference_server.checkpoints.sources import ScriptedSource
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import UnknownModel
from inference_server.model_manager.forecast import Forecast, Outcome, plan_fields
from inference_server.model_manager.plan import plan_model
from inference_server.model_manager.states import ModelState as S
from inference_server.model_manager.warm_tier import Victim
from tests.model_manager.fakes import House, build_house, spawn
from tests.model_manager.virtual_time import run


async def known(house: House, *names: str) -> None:
    """Each has been in memory once, so that its files are known, and is not now."""
    for name in names:
        await house.use(name)
        await house.manager.unload(name)


def test_a_model_whose_bytes_are_free_fits_and_nothing_is_loaded_for_the_question() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10})
        await known(house, "a", "b")
        num_loads = len(house.launcher.launched)
        forecast = await house.manager.forecast("a")
        assert forecast.outcome is Outcome.FITS
        assert forecast.plan is not None
        assert forecast.plan.bytes_by_device == {"cpu": 10}
        assert (house.state("a"), len(house.launcher.launched)) == (S.UNLOADED, num_loads)

    run(scenario())


def test_those_who_would_leave_are_named_and_stay() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10, "c": 10, "d": 20})
        await known(house, "d")
        for name in ("a", "b", "c"):
            await house.use(name)
            await asyncio.sleep(1)
        forecast = await house.manager.forecast("d")
        assert (forecast.outcome, forecast.victims) == (Outcome.EVICTS, (Victim("a"), Victim("b")))
        assert [house.state(name) for name in "abc"] == [S.READY] * 3
        await house.use("d")
        assert house.recorder.evictions[-2:] == [("a", "memory"), ("b", "memory")]

    run(scenario())


def test_models_in_use_are_waited_for() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 20})
        await known(house, "b")
        holder = spawn(house.use("a", hold_s=100))
        await asyncio.sleep(3)
        assert (await house.manager.forecast("b")).outcome is Outcome.WAITS
        assert (await house.manager.forecast("a")).outcome is Outcome.RESIDENT
        await holder

    run(scenario())


def test_what_can_never_be_had_is_refused_with_the_numbers() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 15}, a={"pinned": True})
        await known(house, "b")
        await house.use("a")
        refused = await house.manager.forecast("b")
        assert refused.outcome is Outcome.REFUSED
        assert "needs 15 B on cpu, but only 10 B" in refused.message

    run(scenario())


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5), data=st.data())
def test_a_request_meets_what_was_forecast(sizes: list[int], data: st.DataObject) -> None:
    async def scenario() -> None:
        models = {f"m{number}": size for number, size in enumerate(sizes)}
        house = build_house(models)
        fitting = [name for name, size in models.items() if size <= 30]
        await known(house, *fitting)
        for name in data.draw(st.lists(st.sampled_from(fitting), max_size=6)) if fitting else []:
            await house.use(name)
            await asyncio.sleep(1)
        for name in fitting:
            forecast = await house.manager.forecast(name)
            before = len(house.recorder.evictions)
            await house.use(name)
            left = [model for model, _ in house.recorder.evictions[before:]]
            assert sorted(left) == sorted(victim.name for victim in forecast.victims)
            assert (forecast.outcome is Outcome.EVICTS) == bool(left)

    run(scenario())


def test_a_model_whose_files_are_not_here_has_no_plan(tmp_path: Path) -> None:
    async def scenario() -> Forecast:
        house = build_house({"scripted:": 10}, settings=Settings(cache_dir=str(tmp_path)))
        return await house.manager.forecast("scripted:")

    forecast = asyncio.run(scenario())  # it looks into a folder, in a thread: no virtual time
    assert (forecast.outcome, forecast.plan) == (Outcome.UNKNOWN, None)


def test_the_fields_of_a_plan_say_where_its_quantization_comes_from(tmp_path: Path) -> None:
    folder = write_scripted_folder(ScriptedSource(), tmp_path)
    plan = plan_model(
        ModelSpec(name="s", source="scripted:"), folder, Settings(), {"cpu": 1 << 30}, frozenset()
    )
    fields = plan_fields(plan)
    assert (fields["why"], fields["kernels"]) == ("it has no weights", "torch")
    assert fields["bytes_by_device"] == dict(plan.bytes_by_device)


def test_an_unknown_model_is_an_error() -> None:
    async def scenario() -> None:
        with pytest.raises(UnknownModel):
            await build_house({"a": 1}).manager.forecast("nope")

    run(scenario())
