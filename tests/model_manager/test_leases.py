"""Leases: when they end."""

from __future__ import annotations

import pytest

from tests.model_manager.fakes import build_house, spawn
from tests.model_manager.virtual_time import run, settle


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
