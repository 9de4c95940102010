"""The line of models that wait for memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from inference_server.errors import InsufficientMemory
from inference_server.model_manager.budget import MemoryBudget
from inference_server.model_manager.eviction import Hold, Resident
from inference_server.model_manager.line import MemoryLine, Withdrawn
from inference_server.model_manager.swapping import SwapRules
from inference_server.model_manager.warm_tier import Victim
from tests.model_manager.fakes import now_s
from tests.model_manager.virtual_time import run, settle

IDLE_ONLY = SwapRules(max_swap_wait_s=1e6)  # idle models leave at once, those in use never have to


def resident(name: str, num_bytes: int, **more: object) -> Resident:
    return Resident(name, {"cpu": num_bytes}, 1.0, **more)  # type: ignore[arg-type]


class Desk:
    """A memory line with a budget and residents that the test controls."""

    def __init__(self, budget: Mapping[str, int], rules: SwapRules = IDLE_ONLY) -> None:
        self.budget = MemoryBudget(budget)
        self.residents: list[Resident] = []
        self.evicted: list[str] = []
        self.line = MemoryLine(
            self.budget,
            available=lambda: {d: self.budget.unreserved_bytes(d) for d in self.budget.capacity_bytes},
            residents=lambda: self.residents,
            evict=self._evict,
            rules=rules,
            clock=now_s,
        )

    def _evict(self, victims: Sequence[Victim]) -> None:
        names = [victim.name for victim in victims]
        self.evicted += names
        self.residents = [
            Resident(r.name, r.bytes_by_device, 1.0, hold=Hold.LEAVING) if r.name in names else r
            for r in self.residents
        ]

    def occupy(self, name: str, needed: Mapping[str, int], **more: object) -> None:
        self.budget.reserve(name, needed)
        self.residents.append(Resident(name, needed, 1.0, **more))  # type: ignore[arg-type]

    def leave(self, name: str) -> None:
        self.budget.release(name)
        self.residents = [r for r in self.residents if r.name != name]
        self.line.serve()

    def apply(
        self, name: str, needed: Mapping[str, int], *, wanted: bool = True, since_s: float | None = None
    ) -> asyncio.Task[None]:
        came_s = (now_s() if since_s is None else since_s) if wanted else None
        return asyncio.create_task(self.line.reserve(name, needed, lambda: came_s))


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


def test_who_has_waited_longest_for_a_model_is_served_first_whenever_it_joined_the_line() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("busy", {"cpu": 10}, num_leases=1)
        young = desk.apply("young", {"cpu": 10}, since_s=now_s() - 1)
        await settle()
        old = desk.apply("old", {"cpu": 10}, since_s=now_s() - 5)  # its first load had failed, say
        await settle()
        desk.leave("busy")
        await old
        assert desk.budget.reservation("old")
        with pytest.raises(InsufficientMemory):  # the desk knows of nobody who could leave for it
            await young

    run(scenario())


def test_the_line_looks_after_what_only_the_time_changes() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10}, SwapRules(max_swap_wait_s=7.0))
        desk.occupy("busy", {"cpu": 10}, num_leases=1)
        applicant = desk.apply("new", {"cpu": 10})
        await asyncio.sleep(6.9)
        assert desk.evicted == []
        await asyncio.sleep(0.2)
        assert desk.evicted == ["busy"]
        desk.leave("busy")
        await applicant

    run(scenario())


def test_a_reservation_grows_and_is_as_before_if_the_applicant_leaves_after_the_grant() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.budget.reserve("asleep", {"cpu": 2})
        desk.occupy("busy", {"cpu": 8}, num_leases=1)
        applicant = desk.apply("asleep", {"cpu": 9})
        await settle()
        desk.leave("busy")  # grants; the applicant has not run yet
        assert desk.budget.reservation("asleep") == {"cpu": 9}
        applicant.cancel()
        await asyncio.wait({applicant})
        assert desk.budget.reservation("asleep") == {"cpu": 2}

    run(scenario())


def test_a_sleeper_s_own_bytes_are_not_what_it_waits_for() -> None:
    async def scenario() -> None:
        desk = Desk({"cpu": 10})
        desk.occupy("asleep", {"cpu": 2}, hold=Hold.LOADING)
        desk.occupy("pinned", {"cpu": 5}, pinned=True)
        with pytest.raises(InsufficientMemory, match="needs 7 B on cpu, but only 3 B"):
            await desk.apply("asleep", {"cpu": 9})

    run(scenario())
