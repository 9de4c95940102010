"""Which models leave: the pure choice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.model_manager.eviction import EvictionPolicy, Hold, Resident, choose_victims, covers

COST, LRU = EvictionPolicy.COST, EvictionPolicy.LRU


def resident(name: str, num_bytes: int, last_used_s: float, **more: object) -> Resident:
    return Resident(name, {"cpu": num_bytes}, last_used_s, **more)  # type: ignore[arg-type]


def chosen(
    candidates: list[Resident], needed: dict[str, int], policy: EvictionPolicy = LRU, now_s: float = 100.0
) -> tuple[str, ...] | None:
    victims = choose_victims(candidates, needed, policy=policy, now_s=now_s)
    return None if victims is None else tuple(victim.name for victim in victims)


@pytest.mark.parametrize("policy", EvictionPolicy)
def test_among_equals_the_least_recently_used_model_leaves_first(policy: EvictionPolicy) -> None:
    candidates = [resident("new", 10, 9.0), resident("old", 10, 1.0), resident("middle", 10, 5.0)]
    assert chosen(candidates, {"cpu": 10}, policy) == ("old",)
    assert chosen(candidates, {"cpu": 11}, policy) == ("old", "middle")


def test_cost_weighs_idle_time_and_bytes_against_the_time_to_reload() -> None:
    slow = resident("slow", 10, 0.0, reload_s=60.0)  # 100 s × 10 B ÷ 60 s
    quick = resident("quick", 10, 90.0, reload_s=1.0)  # 10 s × 10 B ÷ 1 s
    assert chosen([slow, quick], {"cpu": 5}, COST) == ("quick",)
    assert chosen([slow, quick], {"cpu": 5}, LRU) == ("slow",)
    large = resident("large", 40, 90.0, reload_s=1.0)  # frees more for the same
    assert chosen([quick, large], {"cpu": 5}, COST) == ("large",)


def test_only_bytes_where_they_are_needed_count() -> None:
    elsewhere = Resident("elsewhere", {"cuda:0": 1000, "cpu": 1}, 0.0)
    assert chosen([elsewhere, resident("here", 10, 50.0)], {"cpu": 1}, COST) == ("here",)


def test_models_in_use_leave_after_idle_ones_and_those_with_few_users_first() -> None:
    candidates = [
        resident("many", 10, 1.0, num_leases=5),
        resident("few", 10, 2.0, num_leases=1),
        resident("idle", 10, 99.0),
    ]
    assert chosen(candidates, {"cpu": 10}, COST) == ("idle",)
    assert chosen(candidates, {"cpu": 20}, COST) == ("idle", "few")


def test_among_those_in_use_who_came_first_leaves_first() -> None:
    candidates = [
        resident("later", 10, 1.0, num_leases=1, protected_until_s=20.0),
        resident("earlier", 10, 2.0, num_leases=1, protected_until_s=10.0),
    ]
    assert chosen(candidates, {"cpu": 10}) == ("earlier",)


@pytest.mark.parametrize("policy", EvictionPolicy)
def test_sleepers_leave_before_anybody_who_is_awake(policy: EvictionPolicy) -> None:
    candidates = [
        resident("awake", 10, 0.0),
        resident("asleep", 3, 50.0, hold=Hold.SLEEPING),
        resident("longer asleep", 3, 40.0, hold=Hold.SLEEPING),
    ]
    assert chosen(candidates, {"cpu": 3}, policy) == ("longer asleep",)
    assert chosen(candidates, {"cpu": 5}, policy) == ("longer asleep", "asleep")
    assert chosen(candidates, {"cpu": 8}, policy) == ("awake",)  # then the sleepers are not necessary


def test_nobody_leaves_when_all_together_do_not_suffice() -> None:
    assert chosen([resident("a", 10, 1.0), resident("b", 10, 2.0)], {"cpu": 21}) is None


def test_a_small_old_model_is_spared_when_a_larger_one_must_leave_anyway() -> None:
    assert chosen([resident("small", 1, 1.0), resident("large", 10, 2.0)], {"cpu": 10}) == ("large",)


def test_a_model_on_another_device_is_not_touched() -> None:
    on_gpu = Resident("gpu", {"cuda:0": 10}, 1.0)
    assert chosen([on_gpu, resident("cpu", 10, 9.0)], {"cpu": 5}) == ("cpu",)
    assert chosen([on_gpu], {"cpu": 5}) is None


def test_needs_on_two_devices_are_covered_together() -> None:
    both = Resident("both", {"cuda:0": 10, "cpu": 2}, 3.0)
    candidates = [both, Resident("gpu", {"cuda:0": 4}, 1.0), resident("host", 5, 2.0)]
    assert chosen(candidates, {"cuda:0": 4, "cpu": 2}) == ("gpu", "host")
    assert chosen(candidates, {"cuda:0": 12, "cpu": 1}) == ("gpu", "both")


residents = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        bytes_by_device=st.dictionaries(st.sampled_from(["cpu", "cuda:0"]), st.integers(0, 20)),
        last_used_s=st.floats(0, 100),
        num_leases=st.integers(0, 2),
        hold=st.sampled_from([Hold.READY, Hold.SLEEPING]),
        protected_until_s=st.floats(0, 100),
        reload_s=st.floats(0, 100),
    ),
    max_size=8,
)


@given(
    residents,
    st.dictionaries(st.sampled_from(["cpu", "cuda:0"]), st.integers(1, 40), min_size=1),
    st.sampled_from(EvictionPolicy),
)
def test_victims_are_sufficient_and_all_necessary(
    candidates: list[Resident], needed: dict[str, int], policy: EvictionPolicy
) -> None:
    victims = choose_victims(candidates, needed, policy=policy, now_s=100.0)
    if victims is None:
        assert not covers(candidates, needed)
        return
    assert covers(victims, needed)
    assert not any(covers([v for v in victims if v is not one], needed) for one in victims)
