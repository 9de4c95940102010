"""The manager under random requests, disconnects, deaths, unloads, sleeps, reloads, and loads that fail or
hang, checked after every step.

It never exceeds the budget, never stops a worker or lets it sleep under a lease, gives bytes back only when
the process is gone or asleep, and answers everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_server import errors
from inference_server.config.catalog import Catalog
from inference_server.config.settings import Settings
from inference_server.model_manager.eviction import EvictionPolicy
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.manager import LAST_GRACE_S
from inference_server.model_manager.states import ModelState
from tests.model_manager.fakes import FakeLauncher, House, build_house
from tests.model_manager.virtual_time import VirtualLoop, settle

MODELS = {
    "small": 5,
    "half": 15,
    "most": 25,
    "all": 30,
    "huge": 31,
    "pinned": 6,
    "gpu": {"cuda:0": 7, "cpu": 4},
}
ASLEEP = {"half": {"cpu": 3}, "most": {"cpu": 4}, "gpu": {"cuda:0": 1, "cpu": 9}}
BUDGET = {"cpu": 30, "cuda:0": 10}
HANG_S = 500.0
MAX_FAILURES = 2  # in one run; with more, hardly any model gets into memory
CROWDS = (
    ("half", "most", "all"),
    ("small", "half", "gpu"),
    ("pinned", "most", "gpu"),
    ("huge", "all", "small"),
)
CHANGES: dict[str, dict[str, Any]] = {
    "rename": {"aliases": ("alias",)},
    "another context": {"max_model_len": 7},
    "another source": {"source": "elsewhere"},
}
SETTLED = (ModelState.UNLOADED, ModelState.READY, ModelState.SLEEPING, ModelState.FAILED)
indices = st.integers(0, 2)  # of the few models that one run is about
seconds = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 20.0])


@dataclass(eq=False)
class User:
    """One request. It holds its lease until told to let go."""

    model: str
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    lease: Lease | None = None
    task: asyncio.Task[None] | None = None

    async def run(self, house: House, wait_s: float | None, keep_alive_s: float | None) -> None:
        try:
            async with house.acquire(self.model, wait_s, keep_alive_s=keep_alive_s) as lease:
                assert not lease.worker.closed.done()
                assert not lease.worker.is_asleep
                assert lease.folder == f"folder-of-{lease.spec.source}"
                self.lease = lease
                try:
                    await self.let_go.wait()
                finally:
                    self.lease = None
        except (errors.Unavailable, errors.UnknownModel):
            pass  # an answer, too


class ManagerMachine(RuleBasedStateMachine):
    """Drives one manager in virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.num_failures = 0
        self.users: list[User] = []
        self.background: list[asyncio.Task[None]] = []
        self.unhandled: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(
        hot=st.sampled_from(CROWDS),
        stop_s=seconds,
        kill_s=seconds,
        sleep_s=seconds,
        can_sleep=st.sampled_from([True, True, True, False]),
        policy=st.sampled_from(EvictionPolicy),
        collate=st.booleans(),
        min_residency=seconds,
        max_swap_wait=seconds,
        ends_early=st.sampled_from([False, False, False, True]),
    )
    def build(
        self,
        hot: Sequence[str],
        stop_s: float,
        kill_s: float,
        sleep_s: float,
        can_sleep: bool,
        ends_early: bool,
        **settings: Any,
    ) -> None:
        self.hot, self.ends_early = hot, ends_early
        settings["eviction_policy"] = str(settings.pop("policy"))

        async def build() -> House:
            launcher = FakeLauncher(stop_s=stop_s, kill_s=kill_s, sleep_s=sleep_s, can_sleep=can_sleep)
            return build_house(
                MODELS,
                budget=BUDGET,
                launcher=launcher,
                asleep=ASLEEP,
                settings=Settings(**settings),
                pinned={"pinned": True},
                small={"keep_alive_s": 2.0},
            )

        self.house = self.run(build())
        self.entries = dict(self.house.manager.catalog.models)

    # ------------------------------------------------------------ what happens

    @rule(
        index=indices, wait_s=st.none() | seconds, keep_alive_s=st.none() | st.sampled_from([-1.0, 0.0, 1.0])
    )
    def request(self, index: int, wait_s: float | None, keep_alive_s: float | None) -> None:
        async def begin() -> None:
            user = User(self.hot[index])
            user.task = asyncio.create_task(user.run(self.house, wait_s, keep_alive_s))
            self.users.append(user)

        self.run(begin())

    @rule(index=indices, finishes=st.booleans())
    def request_and_wait(self, index: int, finishes: bool) -> None:
        self.request(index, None, None)
        self.time_passes(6.0)
        if finishes:
            self.users[-1].let_go.set()
            self.time_passes(0.0)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(self.users))
        user.let_go.set()

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(self.users))
        if user.task is not None:
            user.task.cancel()

    @rule(num_turns=st.integers(1, 6))
    def a_few_turns(self, num_turns: int) -> None:
        async def turns() -> None:
            for _ in range(num_turns):
                await asyncio.sleep(0)

        self.run(turns())

    @rule(duration_s=seconds)
    def time_passes(self, duration_s: float) -> None:
        async def wait() -> None:
            await asyncio.sleep(duration_s)
            await settle()

        self.run(wait())

    @rule(index=indices)
    def worker_dies(self, index: int) -> None:
        name = self.hot[index]
        if name in self.house.launcher.workers:
            self.house.launcher.workers[name].die()

    @rule(index=indices, asleep=st.booleans())
    def change_its_tier(self, index: int, asleep: bool) -> None:
        self.told_to(index, "sleep" if asleep else "wake")
        self.time_passes(3.0)

    @rule(
        index=indices, verb=st.sampled_from(["unload", "unload", "load", "sleep", "sleep", "wake", "folder"])
    )
    def told_to(self, index: int, verb: str) -> None:
        async def obey() -> None:
            with contextlib.suppress(errors.Unavailable, errors.UnknownModel, errors.SleepUnsupported):
                await getattr(self.house.manager, verb)(self.hot[index])

        async def begin() -> None:
            self.background.append(asyncio.create_task(obey()))

        self.run(begin())

    @rule(index=indices, how=st.sampled_from(["remove", "restore", "restore", *CHANGES]))
    def reconfigure(self, index: int, how: str) -> None:
        manager, name = self.house.manager, self.hot[index]
        models = dict(manager.catalog.models)
        if how == "remove":
            models.pop(name, None)
        elif how == "restore":
            models[name] = self.entries[name]
        elif name in models:
            models = {n: msgspec.structs.replace(spec, aliases=()) for n, spec in models.items()}
            models[name] = msgspec.structs.replace(models[name], **CHANGES[how])

        async def reload() -> None:
            manager.reload(Catalog(models=models, memory=manager.catalog.memory))

        if models:
            self.run(reload())

    @rule(index=indices, how=st.sampled_from([*CHANGES, "restore"]), duration_s=seconds)
    def reconfigure_while_its_files_come(self, index: int, how: str, duration_s: float) -> None:
        self.told_to(index, "folder")
        self.a_few_turns(3)
        self.reconfigure(index, how)
        self.time_passes(duration_s)

    @rule(index=indices, falling_asleep=st.booleans(), out_of_memory=st.booleans())
    def next_change_of_tier_fails(self, index: int, falling_asleep: bool, out_of_memory: bool) -> None:
        name = self.hot[index]
        if name in self.house.launcher.workers:
            worker = self.house.launcher.workers[name]
            error = errors.InsufficientMemory("no room") if out_of_memory else errors.ModelLoadFailed("no")
            (worker.sleep_errors if falling_asleep else worker.wake_errors).append(error)

    @rule(hangs=st.booleans())
    def loads_hang(self, hangs: bool) -> None:
        """They end when the launcher's own time limit does it."""
        self.house.launcher.launch_s = HANG_S if hangs else 1.0

    @precondition(lambda self: self.num_failures < MAX_FAILURES)
    @rule(index=indices, at_launch=st.booleans(), out_of_memory=st.booleans())
    def next_load_fails(self, index: int, at_launch: bool, out_of_memory: bool) -> None:
        launcher, name = self.house.launcher, self.hot[index]
        self.num_failures += 1
        if at_launch:
            error = errors.InsufficientMemory("oom") if out_of_memory else errors.ModelLoadFailed("no")
            launcher.launch_errors.setdefault(name, []).append(error)
        else:
            launcher.prepare_errors.setdefault(name, []).append(errors.FetchFailed("no"))

    @rule(taken=st.sampled_from([0, 0, 0, 3, 30]))
    def other_programs_take_memory(self, taken: int) -> None:
        self.house.machine.taken["cpu"] = taken

    # ------------------------------------------------------------ what must hold

    @invariant()
    def the_budget_is_never_exceeded(self) -> None:
        budget = self.house.manager.budget
        for device, capacity in BUDGET.items():
            assert 0 <= budget.reserved_bytes(device) <= capacity

    @invariant()
    def every_process_has_its_bytes_reserved(self) -> None:
        budget = self.house.manager.budget
        for name in self.house.launcher.alive:
            assert budget.reservation(name), f"{name} runs without a reservation"

    @invariant()
    def no_worker_is_stopped_under_a_lease(self) -> None:
        for user in self.users:
            if user.lease is not None:
                assert user.lease.worker.num_stops == 0  # type: ignore[attr-defined]
                assert not user.lease.worker.is_asleep  # type: ignore[attr-defined]

    @invariant()
    def who_is_awake_holds_all_its_bytes(self) -> None:
        for status in self.house.manager.snapshot():
            if status.state is ModelState.READY:
                planned = MODELS[status.name]
                assert status.memory_bytes == (planned if isinstance(planned, int) else sum(planned.values()))
            if status.state is ModelState.SLEEPING:
                assert status.bytes_by_device == ASLEEP[status.name]

    @invariant()
    def leases_are_counted_exactly(self) -> None:
        for status in self.house.manager.snapshot():
            if status.state not in (ModelState.READY, ModelState.DRAINING):
                continue
            worker = self.house.launcher.workers[status.name]
            held = sum(user.lease is not None and user.lease.worker is worker for user in self.users)
            assert status.num_leases == held

    @invariant()
    def nothing_broke_unseen(self) -> None:
        assert self.unhandled == []
        self.users = [user for user in self.users if not self._is_over(user)]

    @staticmethod
    def _is_over(user: User) -> bool:
        task = user.task
        if task is None or not task.done():
            return False
        if not task.cancelled():
            task.result()
        return True

    def teardown(self) -> None:
        try:
            if hasattr(self, "house"):
                if not self.ends_early:
                    self.run(self._everybody_is_answered())
                self.run(self._the_server_ends())
                self.nothing_broke_unseen()
                assert self.users == []
        finally:
            self.loop.close()

    async def _everybody_is_answered(self) -> None:
        for user in self.users:
            user.let_go.set()
        await asyncio.sleep(10_000)
        await settle()
        for task in self.background:
            assert task.done()
        for status in self.house.manager.snapshot():
            assert (status.num_leases, status.num_waiting) == (0, 0)
            assert status.state in SETTLED
            assert (status.memory_bytes > 0) == (status.state in (ModelState.READY, ModelState.SLEEPING))
            assert status.name in self.house.manager.catalog.models
        assert len(self.house.manager.snapshot()) == len(self.house.manager.catalog.models)
        assert await self.house.manager.drain(0)

    async def _the_server_ends(self) -> None:
        """At once, but for the time that a load takes to be gone."""
        started_s = self.loop.time()
        await self.house.manager.stop()
        assert self.loop.time() - started_s <= self.house.launcher.kill_s + 3 * LAST_GRACE_S
        assert self.house.launcher.alive == set()
        assert all(self.house.manager.budget.reserved_bytes(device) == 0 for device in BUDGET)
        for user in self.users:
            user.let_go.set()
        await settle()
        assert all(task.done() for task in self.background)


QUICK = settings(
    max_examples=400, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestManager = ManagerMachine.TestCase
TestManager.settings = QUICK


@pytest.mark.slow
class TestManagerAtLength(ManagerMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(QUICK, max_examples=2000, stateful_step_count=60)
