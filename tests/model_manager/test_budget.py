"""Reservations and where the budget comes from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.config.catalog import MemorySpec
from inference_server.errors import InternalError
from inference_server.model_manager.budget import MemoryBudget, budget_bytes
from inference_server.model_manager.devices import DeviceMemory

MACHINE = {"cpu": DeviceMemory(1000, 500), "cuda:0": DeviceMemory(2000, 100)}


def test_the_default_is_80_percent_of_the_available_host_and_90_percent_of_each_gpu() -> None:
    assert budget_bytes(MemorySpec(), MACHINE) == {"cpu": 400, "cuda:0": 1800}
    assert budget_bytes(MemorySpec(gpu_fraction=None), MACHINE) == {"cpu": 400, "cuda:0": 1800}


def test_the_operator_sets_bytes_or_shares_of_the_whole_device() -> None:
    assert budget_bytes(MemorySpec(gpu_bytes=700, host_bytes=300), MACHINE) == {"cpu": 300, "cuda:0": 700}
    shares = MemorySpec(gpu_fraction=0.25, host_fraction=0.1)
    assert budget_bytes(shares, MACHINE) == {"cpu": 100, "cuda:0": 500}


def test_a_gpu_budget_is_never_larger_than_the_gpu() -> None:
    assert budget_bytes(MemorySpec(gpu_bytes=10**6), MACHINE)["cuda:0"] == 2000


def test_reserving_beyond_the_budget_twice_or_on_an_unknown_device_is_refused() -> None:
    budget = MemoryBudget({"cpu": 10})
    budget.reserve("a", {"cpu": 6})
    assert budget.shortfall("cpu", 5) == 1
    for model, needed in (("b", {"cpu": 5}), ("a", {"cpu": 1}), ("c", {"cuda:0": 1}), ("d", {"cpu": -1})):
        with pytest.raises(InternalError):
            budget.reserve(model, needed)
    assert budget.reserved_bytes("cpu") == 6


def test_releasing_what_is_not_reserved_is_an_error() -> None:
    budget = MemoryBudget({"cpu": 10})
    budget.reserve("a", {"cpu": 6})
    budget.release("a")
    assert budget.unreserved_bytes("cpu") == 10
    with pytest.raises(InternalError):
        budget.release("a")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 12))))
def test_the_sum_of_reservations_never_exceeds_the_capacity(
    operations: list[tuple[str, bool, int]],
) -> None:
    budget = MemoryBudget({"cpu": 10})
    expected: dict[str, int] = {}
    for model, wants, num_bytes in operations:
        fits = sum(expected.values()) + num_bytes <= 10
        if wants and model not in expected and fits:
            budget.reserve(model, {"cpu": num_bytes})
            expected[model] = num_bytes
        elif wants:
            with pytest.raises(InternalError):
                budget.reserve(model, {"cpu": num_bytes})
        elif model in expected:
            budget.release(model)
            del expected[model]
        assert budget.reserved_bytes("cpu") == sum(expected.values()) <= 10
