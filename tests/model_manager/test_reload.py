"""A new configuration while the server runs."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from inference_server import errors
from inference_server.config.catalog import Catalog, MemorySpec, ModelSpec
from inference_server.model_manager.reload import Reloader, ReloadReport, affects_loading, compare
from inference_server.model_manager.states import ModelState as S
from tests.model_manager.fakes import FakeLauncher, House, build_house, spawn
from tests.model_manager.virtual_time import run, settle

SPEC = ModelSpec(name="a", source="a")


def with_models(house: House, *specs: ModelSpec) -> Catalog:
    return Catalog(models={spec.name: spec for spec in specs}, memory=house.manager.catalog.memory)


def changed(spec: ModelSpec, **fields: object) -> ModelSpec:
    return msgspec.structs.replace(spec, **fields)


def test_what_is_different_is_told_by_name() -> None:
    old = Catalog(models={name: changed(SPEC, name=name) for name in ("a", "b", "c")})
    new = Catalog(models={name: changed(SPEC, name=name, pinned=name == "b") for name in ("d", "b", "c")})
    assert compare(old, new) == ReloadReport(added=("d",), removed=("a",), changed=("b",))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"aliases": ("x",), "pinned": True, "preload": True, "keep_alive_s": 5.0}, False),
        ({"max_model_len": 5}, True),
        ({"quantization": "int8"}, True),
        ({"source": "elsewhere"}, True),
    ],
)
def test_only_what_a_load_depends_on_makes_a_model_reload(fields: dict[str, object], expected: bool) -> None:
    assert affects_loading(SPEC, changed(SPEC, **fields)) is expected


def test_another_budget_is_refused_and_nothing_has_changed() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        with pytest.raises(errors.ConfigError, match="`memory` has changed") as caught:
            house.manager.reload(Catalog(models={}, memory=MemorySpec(host_bytes=5)))
        assert caught.value.param == "memory"
        await house.use("a")

    run(scenario())


def test_new_models_appear_and_aliases_move_at_once() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10}, a={"aliases": ("gpt",)})
        a, b = house.manager.catalog.models.values()
        house.manager.reload(with_models(house, changed(a, aliases=())))
        with pytest.raises(errors.UnknownModel):
            await house.use("b")
        report = house.manager.reload(
            with_models(house, changed(b, aliases=("gpt",)), changed(a, aliases=()))
        )
        assert report == ReloadReport(added=("b",))
        assert [status.name for status in house.manager.snapshot()] == ["b", "a"]
        async with house.acquire("gpt") as lease:
            assert lease.spec.name == "b"

    run(scenario())


def test_a_removed_model_finishes_its_requests_and_is_shown_until_it_is_gone() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10})
        b = house.manager.catalog.models["b"]
        holder = spawn(house.use("a", hold_s=10.0))
        await asyncio.sleep(3)
        assert house.manager.reload(with_models(house, b)).removed == ("a",)
        with pytest.raises(errors.UnknownModel):
            await house.use("a")
        assert [(s.name, s.state) for s in house.manager.snapshot()] == [("b", S.UNLOADED), ("a", S.DRAINING)]
        await holder
        await asyncio.sleep(1)
        assert [status.name for status in house.manager.snapshot()] == ["b"]
        assert house.manager.budget.reserved_bytes("cpu") == 0
        assert house.recorder.evictions == [("a", "removed")]

    run(scenario())


@pytest.mark.parametrize("after_s", [0.5, 1.5])
def test_who_waits_for_a_removed_model_is_told_so(after_s: float) -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10})
        b = house.manager.catalog.models["b"]
        waiter = spawn(house.use("a"))
        await asyncio.sleep(after_s)
        house.manager.reload(with_models(house, b))
        with pytest.raises(errors.ModelLoadFailed, match="removed from the configuration"):
            await waiter
        assert house.launcher.alive == set()

    run(scenario())


def test_a_changed_model_drains_and_comes_back_under_its_new_entry() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        a = house.manager.catalog.models["a"]
        holder = spawn(house.use("a", hold_s=10.0))
        await asyncio.sleep(3)
        old_worker = house.launcher.workers["a"]
        assert house.manager.reload(with_models(house, changed(a, max_model_len=64))).changed == ("a",)
        async with house.acquire("a") as lease:
            assert holder.done()
            assert lease.worker is not old_worker
            assert lease.spec.max_model_len == 64
        assert house.launcher.prepared == ["a", "a"]

    run(scenario())


def test_who_waits_for_the_load_of_a_changed_model_gets_the_new_one() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        a = house.manager.catalog.models["a"]
        waiter = spawn(house.use("a"))
        await asyncio.sleep(1.5)
        house.manager.reload(with_models(house, changed(a, max_model_len=64)))
        await waiter
        assert house.launcher.cancelled == ["a"]
        assert house.state("a") is S.READY

    run(scenario())


def test_a_change_that_needs_no_load_leaves_the_model_where_it_is() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        a = house.manager.catalog.models["a"]
        house.manager.reload(with_models(house, changed(a, keep_alive_s=5.0)))
        assert house.manager.status("a").expires_in_s == 5.0
        await asyncio.sleep(6)
        assert house.state("a") is S.UNLOADED
        assert house.launcher.launched == ["a"]

    run(scenario())


def test_a_model_that_comes_back_while_it_drains_is_served_again() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10})
        a, b = house.manager.catalog.models.values()
        holder = spawn(house.use("a", hold_s=10.0))
        await asyncio.sleep(3)
        house.manager.reload(with_models(house, b))
        assert house.manager.reload(with_models(house, a, b)).added == ("a",)
        await house.use("a")
        await holder
        assert house.launcher.launched == ["a", "a"]

    run(scenario())


def test_new_models_marked_preload_are_loaded_in_the_background() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10})
        a, b = house.manager.catalog.models.values()
        house.manager.reload(with_models(house, a))
        await house.manager.start()
        house.manager.reload(with_models(house, a, changed(b, preload=True)))
        assert house.manager.is_ready
        await asyncio.sleep(3)
        assert (house.state("a"), house.state("b")) == (S.UNLOADED, S.READY)
        await house.manager.stop()

    run(scenario())


@pytest.mark.parametrize("fields", [None, {"preload": False}])
@pytest.mark.parametrize("after_s", [0.5, 1.5, 2.5, 4.5])  # fetching, loading, before its next try, at that
def test_a_model_that_is_to_be_preloaded_no_more_is_no_failure(
    after_s: float, fields: dict[str, object] | None
) -> None:
    async def scenario() -> None:
        no = [errors.ModelLoadFailed("no") for _ in range(9)]
        house = build_house(
            {"a": 10, "b": 10},
            launcher=FakeLauncher(launch_errors={"a": no}),
            a={"preload": True},
            b={"preload": True},
        )
        a, b = house.manager.catalog.models.values()
        await house.manager.start()
        await asyncio.sleep(after_s)
        house.manager.reload(with_models(house, *([changed(a, **fields)] if fields else []), b))
        await house.manager.preload_done.wait()
        assert house.manager.is_ready
        assert house.state("b") is S.READY
        assert len(house.launcher.launched) <= 3

    run(scenario())


def test_a_model_that_is_removed_before_its_turn_to_be_preloaded_is_passed_over() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10}, a={"preload": True}, b={"preload": True})
        a, _ = house.manager.catalog.models.values()
        await house.manager.start()
        await asyncio.sleep(0.5)
        house.manager.reload(with_models(house, a))
        await house.manager.preload_done.wait()
        assert house.manager.is_ready
        assert house.launcher.launched == ["a"]

    run(scenario())


def test_a_reload_reads_in_a_thread_and_a_wrong_file_changes_nothing() -> None:
    applied: list[Catalog] = []
    good = Catalog(models={"a": SPEC})

    def apply(catalog: Catalog) -> ReloadReport:
        applied.append(catalog)
        return ReloadReport(added=("a",))

    def broken() -> Catalog:
        raise errors.ConfigError("models.yaml, line 3: what?")

    async def scenario() -> None:
        assert await Reloader(lambda: good, apply).reload() == ReloadReport(added=("a",))
        with pytest.raises(errors.ConfigError, match="line 3"):
            await Reloader(broken, apply).reload()
        await settle()

    asyncio.run(scenario())
    assert applied == [good]
