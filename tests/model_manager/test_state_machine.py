"""The manager under random requests, cancellations, deaths, unloads and failures, checked after every step.

It never exceeds the budget, never stops a worker under a lease, gives bytes back only when the process is
gone, and answers everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_server import errors
from inference_server.model_manager.lease import Lease
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
BUDGET = {"cpu": 30, "cuda:0": 10}
names = st.sampled_from(sorted(MODELS))
seconds = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 20.0])


@dataclass(eq=False)
class User:
    """One request. It holds its lease until told to let go."""

    model: str
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    lease: Lease | None = None
    task: asyncio.Task[None] | None = None

    async def run(self, house: House, wait_s: float | None) -> None:
        try:
            async with house.acquire(self.model, wait_s) as lease:
                assert not lease.worker.closed.done()
                self.lease = lease
                try:
                    await self.let_go.wait()
                finally:
                    self.lease = None
        except (errors.Unavailable, errors.DeadlineExceeded):
            pass  # an answer, too


class ManagerMachine(RuleBasedStateMachine):
    """Drives one manager in virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.users: list[User] = []
        self.background: list[asyncio.Task[None]] = []
        self.unhandled: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(stop_s=seconds, kill_s=seconds)
    def build(self, stop_s: float, kill_s: float) -> None:
        async def build() -> House:
            launcher = FakeLauncher(stop_s=stop_s, kill_s=kill_s)
            return build_house(MODELS, budget=BUDGET, launcher=launcher, pinned={"pinned": True})

        self.house = self.run(build())

    # ------------------------------------------------------------ what happens

    @rule(name=names, wait_s=st.none() | seconds)
    def request(self, name: str, wait_s: float | None) -> None:
        async def begin() -> None:
            user = User(name)
            user.task = asyncio.create_task(user.run(self.house, wait_s))
            self.users.append(user)

        self.run(begin())

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

    @rule(name=names)
    def worker_dies(self, name: str) -> None:
        if name in self.house.launcher.workers:
            self.house.launcher.workers[name].die()

    @rule(name=names)
    def unload(self, name: str) -> None:
        async def begin() -> None:
            self.background.append(asyncio.create_task(self.house.manager.unload(name)))

        self.run(begin())

    @rule(name=names, at_launch=st.booleans(), out_of_memory=st.booleans())
    def next_load_fails(self, name: str, at_launch: bool, out_of_memory: bool) -> None:
        launcher = self.house.launcher
        if at_launch:
            error = errors.InsufficientMemory("oom") if out_of_memory else errors.ModelLoadFailed("no")
            launcher.launch_errors.setdefault(name, []).append(error)
        else:
            launcher.prepare_errors.setdefault(name, []).append(errors.FetchFailed("no"))

    @rule(taken=st.sampled_from([0, 0, 10, 30]))
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
                self.run(self._everybody_is_answered())
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
            assert status.state in (ModelState.UNLOADED, ModelState.READY, ModelState.FAILED)
            assert (status.memory_bytes > 0) == (status.state is ModelState.READY)
        assert await self.house.manager.drain(0)
        await self.house.manager.stop()
        assert self.house.launcher.alive == set()
        assert all(self.house.manager.budget.reserved_bytes(device) == 0 for device in BUDGET)


QUICK = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestManager = ManagerMachine.TestCase
TestManager.settings = QUICK


@pytest.mark.slow
class TestManagerAtLength(ManagerMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(QUICK, max_examples=2000, stateful_step_count=60)
