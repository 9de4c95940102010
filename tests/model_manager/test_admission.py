"""Who gets memory next: the decision about one applicant."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from inference_server.model_manager.admission import Claim, Decision, Evict, Grant, Refuse, Wait, decide
from inference_server.model_manager.eviction import Hold, Resident
from inference_server.model_manager.swapping import SwapRules
from inference_server.model_manager.warm_tier import Victim

AT_ONCE = SwapRules(max_swap_wait_s=math.inf)  # idle models leave at once, those in use never have to
RULES = SwapRules(min_residency_s=3.0, max_swap_wait_s=10.0)
IN_ORDER = SwapRules(collate=False)
NOW_S = 100.0


def resident(name: str, num_bytes: int, **more: object) -> Resident:
    return Resident(name, {"cpu": num_bytes}, 1.0, **more)  # type: ignore[arg-type]


def decided(
    needed: dict[str, int],
    available: dict[str, int],
    residents: list[Resident],
    rules: SwapRules = AT_ONCE,
    waited_s: float = 0.0,
) -> Decision:
    return decide(Claim(needed, NOW_S - waited_s), available, residents, rules, NOW_S)


def test_bytes_that_are_there_are_granted() -> None:
    assert decided({"cpu": 10}, {"cpu": 10}, []) == Grant()


def test_idle_models_are_evicted_only_if_that_suffices() -> None:
    assert decided({"cpu": 10}, {"cpu": 4}, [resident("idle", 6)]) == Evict((Victim("idle"),))
    busy = resident("busy", 6, num_leases=1)
    assert decided({"cpu": 10}, {"cpu": 2}, [resident("idle", 3), busy]) == Wait(is_leaving=False)


def test_nobody_else_is_evicted_while_enough_is_on_its_way_back() -> None:
    residents = [resident("leaving", 6, hold=Hold.LEAVING), resident("idle", 6)]
    assert decided({"cpu": 10}, {"cpu": 4}, residents) == Wait(is_leaving=True)
    assert decided({"cpu": 12}, {"cpu": 4}, residents) == Evict((Victim("idle"),))


def test_a_load_under_way_is_waited_for() -> None:
    assert decided({"cpu": 9}, {"cpu": 0}, [resident("loading", 9, hold=Hold.LOADING)]) == Wait(False)


def test_bytes_that_pinned_models_or_other_programs_keep_are_refused_at_once() -> None:
    assert decided({"cpu": 10}, {"cpu": 4}, [resident("pinned", 6, pinned=True)]) == Refuse("cpu", 10, 4)
    assert decided({"cpu": 10}, {"cpu": 4}, [resident("idle", 5)]) == Refuse("cpu", 10, 9)
    assert decided({"cuda:0": 10, "cpu": 1}, {"cpu": 4}, []) == Refuse("cuda:0", 10, 0)


# ---------------------------------------------------------------- turns


def test_a_model_that_was_just_loaded_stays_until_its_minimum_is_over() -> None:
    fresh = resident("fresh", 6, protected_until_s=NOW_S + 2)
    assert decided({"cpu": 6}, {}, [fresh], RULES) == Wait(False, until_s=NOW_S + 2)
    settled = resident("settled", 6, protected_until_s=NOW_S)
    assert decided({"cpu": 6}, {}, [settled], RULES) == Evict((Victim("settled"),))


def test_who_has_waited_too_long_gets_the_place_of_a_model_in_use() -> None:
    busy = resident("busy", 6, num_leases=3)
    assert decided({"cpu": 6}, {}, [busy], RULES, waited_s=9.0) == Wait(False, until_s=NOW_S + 1)
    assert decided({"cpu": 6}, {}, [busy], RULES, waited_s=10.0) == Evict((Victim("busy"),))


def test_the_minimum_holds_also_against_who_has_waited_too_long() -> None:
    fresh = resident("fresh", 6, num_leases=1, protected_until_s=NOW_S + 2)
    assert decided({"cpu": 6}, {}, [fresh], RULES, waited_s=50.0) == Wait(False, until_s=NOW_S + 2)


def test_no_second_model_in_use_makes_way_while_one_that_suffices_finishes() -> None:
    residents = [resident("draining", 6, num_leases=1, hold=Hold.DRAINING), resident("busy", 6, num_leases=1)]
    assert decided({"cpu": 6}, {}, residents, RULES, waited_s=50.0) == Wait(False)
    assert decided({"cpu": 8}, {}, residents, RULES, waited_s=50.0) == Evict((Victim("busy"),))
    idle = [*residents, resident("idle", 9)]  # need not wait for others to finish
    assert decided({"cpu": 6}, {}, idle, RULES) == Evict((Victim("idle"),))


def test_who_waits_for_a_model_in_memory_is_served_before_it_makes_way() -> None:
    wanted = resident("wanted", 6, oldest_wait_s=NOW_S)
    assert decided({"cpu": 6}, {}, [wanted], RULES, waited_s=50.0) == Wait(False)


def test_in_order_of_arrival_only_those_who_came_before_are_served_first() -> None:
    earlier = resident("a", 6, num_leases=1, oldest_wait_s=NOW_S - 2)
    assert decided({"cpu": 6}, {}, [earlier], IN_ORDER, waited_s=1.0) == Wait(False)
    later = resident("a", 6, num_leases=1, oldest_wait_s=NOW_S - 0.5)
    assert decided({"cpu": 6}, {}, [later], IN_ORDER, waited_s=1.0) == Evict((Victim("a"),))


# ---------------------------------------------------------------- for all

DEVICES = ["cpu", "cuda:0"]
amounts = st.dictionaries(st.sampled_from(DEVICES), st.integers(0, 20))
times = st.floats(0, 2 * NOW_S)
crowds = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        bytes_by_device=amounts,
        last_used_s=st.floats(0, NOW_S),
        num_leases=st.integers(0, 2),
        oldest_wait_s=st.none() | st.floats(0, NOW_S),
        pinned=st.booleans(),
        hold=st.sampled_from(Hold),
        protected_until_s=times,
        reload_s=st.floats(0.1, 100),
        sleeping_bytes=st.none() | amounts,
    ),
    max_size=6,
)
rules = st.builds(
    SwapRules,
    collate=st.booleans(),
    min_residency_s=st.floats(0, 10),
    max_swap_wait_s=st.floats(0, 10),
)


@given(amounts, amounts, crowds, rules, st.floats(0, NOW_S))
def test_nobody_who_may_stay_is_told_to_leave_and_time_brings_everybody_their_turn(
    needed: dict[str, int], available: dict[str, int], crowd: list[Resident], how: SwapRules, waited_s: float
) -> None:
    decision = decided(needed, available, crowd, how, waited_s)
    by_name = {resident.name: resident for resident in crowd}
    if isinstance(decision, Evict):
        assert decision.victims
        for victim in decision.victims:
            leaving = by_name[victim.name]
            assert not leaving.pinned
            assert leaving.hold in (Hold.READY, Hold.SLEEPING)
            assert leaving.hold is Hold.READY or not victim.sleeps
            assert leaving.protected_until_s <= NOW_S or leaving.hold is Hold.SLEEPING
            assert not leaving.num_leases or waited_s >= how.max_swap_wait_s
    elif isinstance(decision, Wait) and not decision.is_leaving:
        assert decision.until_s > NOW_S
        if waited_s >= how.max_swap_wait_s:  # then only what must be, keeps it waiting
            going = [r for r in crowd if r.hold in (Hold.LEAVING, Hold.DRAINING)]
            free = [
                r for r in crowd if r.is_settled and r.protected_until_s <= NOW_S and r.oldest_wait_s is None
            ]
            there = {
                device: available.get(device, 0) + sum(r.bytes_by_device.get(device, 0) for r in going)
                for device in needed
            }
            if any(num_bytes > there[device] for device, num_bytes in needed.items()):
                there = {d: there[d] + sum(r.bytes_by_device.get(d, 0) for r in free) for d in needed}
                assert any(num_bytes > there[device] for device, num_bytes in needed.items())


@given(amounts, amounts, crowds, rules, st.floats(0, NOW_S))
def test_who_leaves_gives_enough_also_where_some_only_sleep(
    needed: dict[str, int], available: dict[str, int], crowd: list[Resident], how: SwapRules, waited_s: float
) -> None:
    decision = decided(needed, available, crowd, how, waited_s)
    if not isinstance(decision, Evict):
        return
    by_name = {resident.name: resident for resident in crowd}
    there = {device: available.get(device, 0) for device in DEVICES}
    for going in crowd:
        if going.hold in (Hold.LEAVING, Hold.DRAINING):
            for device, num_bytes in going.bytes_by_device.items():
                there[device] += num_bytes
    for victim in decision.victims:
        kept = (by_name[victim.name].sleeping_bytes or {}) if victim.sleeps else {}
        for device in DEVICES:
            there[device] += by_name[victim.name].bytes_by_device.get(device, 0) - kept.get(device, 0)
    assert all(there[device] >= num_bytes for device, num_bytes in needed.items())
