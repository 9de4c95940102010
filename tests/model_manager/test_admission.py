"""Who gets memory next: the decision, and the line."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from inference_server.errors import InsufficientMemory
from inference_server.model_manager.admission import (
    Evict,
    Grant,
    MemoryLine,
    Refuse,
    Wait,
    Withdrawn,
    decide,
)
from inference_server.model_manager.budget import MemoryBudget
from inference_server.model_manager.eviction import Hold, Resident
from tests.model_manager.virtual_time import run, settle


def resident(name: str, num_bytes: int, **more: object) -> Resident:
    return Resident(name, {"cpu": num_bytes}, 1.0, **more)  # type: ignore[arg-type]


def test_bytes_that_are_there_are_granted() -> None:
    assert decide({"cpu": 10}, {"cpu": 10}, []) == Grant()


def test_idle_models_are_evicted_only_if_that_suffices() -> None:
    assert decide({"cpu": 10}, {"cpu": 4}, [resident("idle", 6)]) == Evict(("idle",))
    busy = resident("busy", 6, num_leases=1)
    assert decide({"cpu": 10}, {"cpu": 2}, [resident("idle", 3), busy]) == Wait(is_leaving=False)


def test_nobody_else_is_evicted_while_enough_is_on_its_way_back() -> None:
    residents = [resident("leaving", 6, hold=Hold.LEAVING), resident("idle", 6)]
    assert decide({"cpu": 10}, {"cpu": 4}, residents) == Wait(is_leaving=True)
    assert decide({"cpu": 12}, {"cpu": 4}, residents) == Evict(("idle",))


def test_a_load_under_way_is_waited_for() -> None:
    assert decide({"cpu": 9}, {"cpu": 0}, [resident("loading", 9, hold=Hold.LOADING)]) == Wait(False)


def test_bytes_that_pinned_models_or_other_programs_keep_are_refused_at_once() -> None:
    assert decide({"cpu": 10}, {"cpu": 4}, [resident("pinned", 6, pinned=True)]) == Refuse("cpu", 10, 4)
    assert decide({"cpu": 10}, {"cpu": 4}, [resident("idle", 5)]) == Refuse("cpu", 10, 9)
    assert decide({"cuda:0": 10, "cpu": 1}, {"cpu": 4}, []) == Refuse("cuda:0", 10, 0)


class Desk:
    """A memory line with a budget and residents that the test controls."""

    def __init__(self, budget: Mapping[str, int]) -> None:
        self.budget = MemoryBudget(budget)
        self.residents: list[Resident] = []
        self.evicted: list[str] = []
        self.line = MemoryLine(
            self.budget,
            available=lambda: {d: self.budget.unreserved_bytes(d) for d in self.budget.capacity_bytes},
            residents=lambda: self.residents,
            evict=self._evict,
        )

    def _evict(self, name: str) -> None:
        self.evicted.append(name)
        self.residents = [
            resident(name, 0) if r.name != name else Resident(name, r.bytes_by_device, 1.0, hold=Hold.LEAVING)
            for r in self.residents
        ]

    def occupy(self, name: str, needed: Mapping[str, int], **more: object) -> None:
        self.budget.reserve(name, needed)
        self.residents.append(Resident(name, needed, 1.0, **more))  # type: ignore[arg-type]

    def leave(self, name: str) -> None:
        self.budget.release(name)
        self.residents = [r for r in self.residents if r.name != name]
        self.line.serve()

    def apply(self, name: str, needed: Mapping[str, int], *, wanted: bool = True) -> asyncio.Task[None]:
        return asyncio.create_task(self.line.reserve(name, needed, lambda: wanted))


def test_a_small_applicant_does_not_pass_a_large_one_that_came_before() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("busy", {"cpu": 6}, num_leases=1)
        large = desk.apply("large", {"cpu": 8})
        await settle()
        small = desk.apply("small", {"cpu": 2})
        await settle()
        assert not large.done()
        assert not small.done()
        desk.leave("busy")
        await settle()
        assert large.done()
        assert small.done()

    run(scenario())


def test_an_applicant_for_another_device_is_not_held_up() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10, "cuda:0": 10})
        desk.occupy("busy", {"cuda:0": 6}, num_leases=1)
        on_gpu = desk.apply("on gpu", {"cuda:0": 8})
        on_host = desk.apply("on host", {"cpu": 8})
        await settle()
        assert (on_gpu.done(), on_host.done()) == (False, True)
        desk.leave("busy")
        await on_gpu

    run(scenario())


def test_a_victim_is_evicted_once_however_often_the_line_is_served() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("idle", {"cpu": 10})
        applicant = desk.apply("new", {"cpu": 10})
        await settle()
        desk.line.serve()
        desk.line.serve()
        assert desk.evicted == ["idle"]
        assert not applicant.done()
        desk.leave("idle")
        await applicant
        assert desk.budget.reservation("new") == {"cpu": 10}

    run(scenario())


def test_an_applicant_cancelled_while_waiting_lets_the_next_one_in() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("busy", {"cpu": 6}, num_leases=1)
        large = desk.apply("large", {"cpu": 8})
        small = desk.apply("small", {"cpu": 2})
        await settle()
        large.cancel()
        await small
        assert desk.budget.reserved_bytes("cpu") == 8
        assert len(desk.line) == 0

    run(scenario())


def test_a_grant_that_meets_a_cancellation_is_given_back() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("busy", {"cpu": 10}, num_leases=1)
        applicant = desk.apply("new", {"cpu": 10})
        await settle()
        desk.leave("busy")  # grants; the applicant has not run yet
        assert desk.budget.reservation("new")
        applicant.cancel()
        await asyncio.wait({applicant})
        assert applicant.cancelled()
        assert desk.budget.reserved_bytes("cpu") == 0

    run(scenario())


def test_a_refusal_frees_the_way_for_the_next_applicant() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("pinned", {"cpu": 6}, pinned=True)
        too_large = desk.apply("too large", {"cpu": 8})
        small = desk.apply("small", {"cpu": 4})
        await small
        with pytest.raises(InsufficientMemory, match=r"needs 8 B on cpu, but only 4 B"):
            await too_large

    run(scenario())


def test_an_unwanted_applicant_may_evict_but_not_wait_for_others() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("busy", {"cpu": 10}, num_leases=1)
        with pytest.raises(Withdrawn):
            await desk.apply("unwanted", {"cpu": 5}, wanted=False)
        desk.leave("busy")
        desk.occupy("idle", {"cpu": 10})
        applicant = desk.apply("unwanted", {"cpu": 5}, wanted=False)
        await settle()
        assert desk.evicted == ["idle"]
        desk.leave("idle")
        await applicant

    run(scenario())
