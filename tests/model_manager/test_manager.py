"""The manager with fakes all around: loads, leases, memory, deaths, unloads."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from inference_server import errors
from inference_server.model_manager.states import ModelState as S
from inference_server.types import EngineStats
from inference_server.worker.protocol import Progress
from tests.model_manager.fakes import FakeLauncher, House, build_house
from tests.model_manager.virtual_time import run, settle


def now_s() -> float:
    return asyncio.get_running_loop().time()


def spawn(coroutine: object) -> asyncio.Task[object]:
    return asyncio.create_task(coroutine)  # type: ignore[arg-type]


# ---------------------------------------------------------------- loading


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
        assert house.recorder.loads == [("a", 2.0, True)]
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


def test_a_failed_fetch_is_a_failed_load_for_everybody_and_the_next_one_tries_again() -> None:
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
        await house.use("a")
        assert house.state("a") is S.READY
        assert house.manager.status("a").failure is None
        assert [ok for _, _, ok in house.recorder.loads] == [False, True]

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
        await house.use("a")
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
        await house.use("b")
        assert launcher.prepared == ["a", "b", "b"]

    run(scenario())


def test_the_deadline_ends_the_wait_but_not_the_load() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        started_s = now_s()
        with pytest.raises(errors.DeadlineExceeded):
            await house.use("a", wait_s=1.5)
        assert now_s() - started_s == pytest.approx(1.5)
        await asyncio.sleep(1)
        assert house.state("a") is S.READY

    run(scenario())


def test_a_deadline_that_has_passed_starts_no_load() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        with pytest.raises(errors.DeadlineExceeded):
            await house.use("a", wait_s=-1)
        assert house.state("a") is S.UNLOADED

    run(scenario())


# ---------------------------------------------------------------- leases


def test_a_lease_ends_when_its_body_raises() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        with pytest.raises(ZeroDivisionError):
            async with house.acquire("a"):
                raise ZeroDivisionError
        assert house.manager.status("a").num_leases == 0

    run(scenario())


def test_a_lease_ends_when_its_body_is_cancelled_and_only_once() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.use("a")
        other = house.acquire("a")
        await other.__aenter__()
        task = spawn(house.use("a", hold_s=100))
        await settle()
        assert house.manager.status("a").num_leases == 2
        task.cancel()
        await settle()
        assert house.manager.status("a").num_leases == 1
        await other.__aexit__(None, None, None)
        assert house.manager.status("a").num_leases == 0

    run(scenario())


def test_releasing_a_lease_by_hand_and_again_at_the_end_counts_once() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        async with house.acquire("a"):
            async with house.acquire("a") as lease:
                lease.release()
                lease.release()
                assert house.manager.status("a").num_leases == 1
            assert house.manager.status("a").num_leases == 1

    run(scenario())


# ---------------------------------------------------------------- memory


def test_the_least_recently_used_idle_model_makes_room_and_is_gone_before_the_next_starts() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10, "c": 10, "d": 10})
        for name in ("a", "b", "c", "a"):
            await house.use(name)
            await asyncio.sleep(1)
        house.launcher.stop_s = 5
        waiter = spawn(house.use("d"))
        await asyncio.sleep(1.2)
        assert house.state("b") is S.DRAINING
        assert house.manager.budget.reserved_bytes("cpu") == 30
        assert "d" not in house.launcher.launched
        await waiter
        assert house.recorder.evictions == [("b", "memory")]
        assert house.launcher.alive == {"a", "c", "d"}

    run(scenario())


def test_a_model_larger_than_the_whole_budget_is_refused_at_once_with_both_numbers() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "huge": 31})
        await house.use("a")
        with pytest.raises(errors.InsufficientMemory, match=r"needs 31 B on cpu.*budget of 30 B"):
            await house.use("huge")
        assert house.state("a") is S.READY
        assert house.recorder.evictions == []

    run(scenario())


def test_a_leased_model_is_never_evicted_and_the_waiter_is_told_at_its_deadline() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 20})
        holder = spawn(house.use("a", hold_s=100))
        await asyncio.sleep(3)
        with pytest.raises(errors.InsufficientMemory, match="needs 20 B on cpu"):
            await house.use("b", wait_s=10)
        await settle()
        assert house.state("a") is S.READY
        assert house.state("b") is S.UNLOADED  # nobody waits any more: no eviction for nobody, later
        await holder
        await asyncio.sleep(10)
        assert house.recorder.evictions == []

    run(scenario())


def test_a_waiter_gets_its_memory_the_moment_the_last_lease_ends() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 20})
        holder = spawn(house.use("a", hold_s=10))
        await asyncio.sleep(3)
        started_s = now_s()
        await house.use("b", wait_s=60)
        assert now_s() - started_s == pytest.approx(9 + 0.5 + 1)  # rest of the lease, stop, launch
        await holder
        assert house.recorder.evictions == [("a", "memory")]

    run(scenario())


def test_waiters_for_memory_are_served_in_the_order_in_which_they_came() -> None:
    async def scenario() -> None:
        house = build_house({"a": 30, "big": 30, "small": 1})
        holder = spawn(house.use("a", hold_s=10))
        await asyncio.sleep(3)
        order: list[str] = []

        async def queue(name: str) -> None:
            async with house.acquire(name):
                order.append(name)
                await asyncio.sleep(1)

        big = spawn(queue("big"))
        await asyncio.sleep(1.5)
        small = spawn(queue("small"))
        await asyncio.gather(holder, big, small)
        assert order == ["big", "small"]

    run(scenario())


def test_a_freshly_loaded_model_is_not_evicted_before_its_waiters_have_used_it() -> None:
    async def scenario() -> None:
        house = build_house({"a": 30, "b": 30})
        await asyncio.gather(*(house.use(name, hold_s=1) for name in "abababab"))
        assert sorted(house.launcher.launched) == ["a", "b"]

    run(scenario())


def test_pinned_models_stay_and_who_cannot_fit_beside_them_is_refused_at_once() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 10, "c": 20}, a={"pinned": True})
        await house.use("a")
        await house.use("b")
        with pytest.raises(errors.InsufficientMemory, match="pinned"):
            await house.use("c")
        assert house.state("a") is S.READY
        assert house.state("b") is S.READY

    run(scenario())


def test_a_plan_is_made_after_the_fetch_for_what_is_not_pinned() -> None:
    async def scenario() -> None:
        house = build_house({"a": 20, "b": 5, "c": 5}, a={"pinned": True})
        for name in ("a", "b"):
            await house.use(name)
        waiter = spawn(house.use("c"))
        await asyncio.sleep(0.5)
        assert house.planned == {"a": {"cpu": 30}, "b": {"cpu": 10}}
        await waiter
        assert house.planned["c"] == {"cpu": 10}  # b may leave, a may not

    run(scenario())


def test_memory_that_other_programs_hold_is_not_promised_to_a_model() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10}, budget=30, free={"cpu": 30})
        house.machine.taken["cpu"] = 15
        await house.use("a")
        await house.use("b")  # fits the budget, but not what is free: a leaves
        assert house.recorder.evictions == [("a", "memory")]
        house.machine.taken["cpu"] = 25
        await house.manager.unload("b")
        with pytest.raises(errors.InsufficientMemory, match=r"needs 10 B on cpu, but only 5 B"):
            await house.use("a")

    run(scenario())


def test_a_model_on_a_gpu_takes_bytes_on_both_devices() -> None:
    async def scenario() -> None:
        models = {"g": {"cuda:0": 50, "cpu": 5}, "h": {"cuda:0": 60, "cpu": 5}, "c": 25}
        house = build_house(models, budget={"cpu": 30, "cuda:0": 100})
        await house.use("g")
        await house.use("c")
        await house.use("h")
        assert house.recorder.evictions == [("g", "memory")]
        assert house.manager.budget.reserved_bytes("cuda:0") == 60
        assert house.manager.budget.reserved_bytes("cpu") == 30

    run(scenario())


# ---------------------------------------------------------------- deaths


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


# ---------------------------------------------------------------- unloading


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


# ---------------------------------------------------------------- start and end


def preloading(**launcher_fields: object) -> House:
    launcher = FakeLauncher(**launcher_fields)  # type: ignore[arg-type]
    return build_house(
        {"a": 10, "b": 10, "c": 10}, launcher=launcher, a={"preload": True}, c={"preload": True}
    )


def test_the_manager_is_ready_once_every_preloaded_model_has_been_in_memory() -> None:
    async def scenario() -> None:
        house = preloading()
        await house.manager.start()
        assert not house.manager.is_ready
        await house.manager.preload_done.wait()
        assert house.manager.is_ready
        assert (house.state("a"), house.state("b"), house.state("c")) == (S.READY, S.UNLOADED, S.READY)
        house.launcher.workers["a"].die()
        await settle()
        assert house.manager.is_ready

    run(scenario())


def test_a_manager_without_preloads_is_ready_at_once() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.manager.start()
        assert house.manager.is_ready

    run(scenario())


def test_a_preload_is_retried_twice() -> None:
    async def scenario() -> None:
        failures: list[Exception] = [errors.FetchFailed("network") for _ in range(2)]
        house = preloading(prepare_errors={"a": failures})
        await house.manager.start()
        await house.manager.preload_done.wait()
        assert house.manager.is_ready
        assert house.launcher.prepared == ["a", "a", "a", "c"]

    run(scenario())


def test_a_preload_that_keeps_failing_is_reported_and_the_manager_is_not_ready() -> None:
    async def scenario() -> None:
        failures: list[Exception] = [errors.FetchFailed("network") for _ in range(9)]
        house = preloading(prepare_errors={"a": failures})
        await house.manager.start()
        await house.manager.preload_done.wait()
        assert isinstance(house.manager.preload_error, errors.ModelLoadFailed)
        assert not house.manager.is_ready
        assert house.launcher.prepared == ["a"] * 3

    run(scenario())


def test_draining_refuses_new_requests_and_waits_for_those_there_are() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        await house.manager.start()
        holder = spawn(house.use("a", hold_s=10))
        await asyncio.sleep(1)  # still loading: it has been let in, so it is served
        started_s = now_s()
        drain = spawn(house.manager.drain(30))
        await settle()
        assert not house.manager.is_ready
        with pytest.raises(errors.ShuttingDown):
            await house.use("a")
        assert await drain is True
        assert now_s() - started_s == pytest.approx(11)
        await holder

    run(scenario())


def test_draining_gives_up_at_its_time_limit() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10})
        holder = spawn(house.use("a", hold_s=100))
        await asyncio.sleep(3)
        assert await house.manager.drain(5) is False
        holder.cancel()

    run(scenario())


def test_stopping_ends_loads_and_workers_whoever_uses_them() -> None:
    async def scenario() -> None:
        house = build_house({"a": 10, "b": 10, "c": 30}, a={"preload": True})
        await house.manager.start()
        await house.manager.preload_done.wait()
        holder = spawn(house.use("a", hold_s=1000))
        await settle()
        loading, in_line = spawn(house.use("b")), spawn(house.use("c"))
        await asyncio.sleep(1.5)
        started_s = now_s()
        await house.manager.stop()
        assert now_s() - started_s < 5  # does not wait for the lease
        assert house.launcher.alive == set()
        assert house.manager.budget.reserved_bytes("cpu") == 0
        for waiter in (loading, in_line):
            with pytest.raises(errors.ShuttingDown):
                await waiter
        holder.cancel()
        await house.manager.stop()  # once more does no harm

    run(scenario())


def test_stopping_during_a_preload_leaves_nobody_waiting_for_it() -> None:
    async def scenario() -> None:
        house = preloading()
        await house.manager.start()
        await house.manager.stop()
        await house.manager.preload_done.wait()
        assert house.launcher.alive == set()

    run(scenario())
