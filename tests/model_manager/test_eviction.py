"""Which models leave: the pure choice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_server.model_manager.eviction import Hold, Resident, choose_victims


def resident(name: str, num_bytes: int, last_used_s: float, **more: object) -> Resident:
    return Resident(name, {"cpu": num_bytes}, last_used_s, **more)  # type: ignore[arg-type]


def test_the_least_recently_used_model_leaves_first() -> None:
    candidates = [resident("new", 10, 9.0), resident("old", 10, 1.0), resident("middle", 10, 5.0)]
    assert choose_victims(candidates, {"cpu": 10}) == ("old",)
    assert choose_victims(candidates, {"cpu": 11}) == ("old", "middle")


def test_leased_pinned_loading_and_leaving_models_stay() -> None:
    candidates = [
        resident("leased", 10, 1.0, num_leases=1),
        resident("pinned", 10, 1.0, pinned=True),
        resident("loading", 10, 1.0, hold=Hold.LOADING),
        resident("leaving", 10, 1.0, hold=Hold.LEAVING),
        resident("idle", 10, 9.0),
    ]
    assert choose_victims(candidates, {"cpu": 10}) == ("idle",)


def test_nobody_leaves_when_all_together_do_not_suffice() -> None:
    assert choose_victims([resident("a", 10, 1.0), resident("b", 10, 2.0)], {"cpu": 21}) is None


def test_a_small_old_model_is_spared_when_a_larger_one_must_leave_anyway() -> None:
    assert choose_victims([resident("small", 1, 1.0), resident("large", 10, 2.0)], {"cpu": 10}) == ("large",)


def test_a_model_on_another_device_is_not_touched() -> None:
    on_gpu = Resident("gpu", {"cuda:0": 10}, 1.0)
    assert choose_victims([on_gpu, resident("cpu", 10, 9.0)], {"cpu": 5}) == ("cpu",)
    assert choose_victims([on_gpu], {"cpu": 5}) is None


def test_needs_on_two_devices_are_covered_together() -> None:
    both = Resident("both", {"cuda:0": 10, "cpu": 2}, 3.0)
    candidates = [both, Resident("gpu", {"cuda:0": 4}, 1.0), resident("host", 5, 2.0)]
    assert choose_victims(candidates, {"cuda:0": 4, "cpu": 2}) == ("gpu", "host")
    assert choose_victims(candidates, {"cuda:0": 12, "cpu": 1}) == ("gpu", "both")


residents = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        bytes_by_device=st.dictionaries(st.sampled_from(["cpu", "cuda:0"]), st.integers(0, 20)),
        last_used_s=st.floats(0, 100),
        num_leases=st.integers(0, 1),
        pinned=st.booleans(),
        hold=st.sampled_from(Hold),
    ),
    max_size=8,
)


@given(residents, st.dictionaries(st.sampled_from(["cpu", "cuda:0"]), st.integers(1, 40), min_size=1))
def test_victims_are_evictable_sufficient_and_all_necessary(
    candidates: list[Resident], needed: dict[str, int]
) -> None:
    victims = choose_victims(candidates, needed)
    evictable = [candidate for candidate in candidates if candidate.evictable]

    def covers(chosen: list[Resident]) -> bool:
        return all(sum(c.bytes_by_device.get(d, 0) for c in chosen) >= n for d, n in needed.items())

    if victims is None:
        assert not covers(evictable)
        return
    chosen = [candidate for candidate in candidates if candidate.name in victims]
    assert all(candidate.evictable for candidate in chosen)
    assert covers(chosen)
    assert not any(covers([c for c in chosen if c is not one]) for one in chosen)
