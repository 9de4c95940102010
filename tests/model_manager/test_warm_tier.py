"""Who sleeps instead of being unloaded: the pure choice."""

from __future__ import annotations

from inference_server.model_manager.eviction import Hold, Resident
from inference_server.model_manager.warm_tier import Victim, choose_sleepers


def on_gpu(name: str, last_used_s: float = 1.0, **more: object) -> Resident:
    """10 B on the device; asleep, its weights take 6 B of the host."""
    fields: dict[str, object] = {"sleeping_bytes": {"cuda:0": 1, "cpu": 8}, **more}
    return Resident(name, {"cuda:0": 10, "cpu": 2}, last_used_s, **fields)  # type: ignore[arg-type]


def asleep(name: str, last_used_s: float, **more: object) -> Resident:
    return Resident(name, {"cuda:0": 1, "cpu": 8}, last_used_s, hold=Hold.SLEEPING, **more)  # type: ignore[arg-type]


def test_a_victim_sleeps_if_the_need_is_met_and_the_host_has_room() -> None:
    victim = on_gpu("a")
    assert choose_sleepers([victim], [victim], {"cuda:0": -9, "cpu": 6}) == (Victim("a", sleeps=True),)


def test_it_is_unloaded_where_what_it_keeps_would_be_missing() -> None:
    victim = on_gpu("a")
    assert choose_sleepers([victim], [victim], {"cuda:0": -10, "cpu": 6}) == (Victim("a"),)
    assert choose_sleepers([victim], [victim], {"cuda:0": -9, "cpu": 5}) == (Victim("a"),)
    cannot = on_gpu("b", sleeping_bytes=None)
    assert choose_sleepers([cannot], [cannot], {"cuda:0": -9, "cpu": 60}) == (Victim("b"),)


def test_of_two_victims_the_one_used_last_keeps_its_warmth() -> None:
    old, new = on_gpu("old", 1.0), on_gpu("new", 2.0)
    both = choose_sleepers([old, new], [old, new], {"cuda:0": -15, "cpu": 6})
    assert both == (Victim("old"), Victim("new", sleeps=True))


def test_the_least_recently_used_sleeper_makes_room_for_the_next_one() -> None:
    victim, sleepers = on_gpu("a"), [asleep("young", 9.0), asleep("old", 3.0)]
    assert choose_sleepers([victim], [victim, *sleepers], {"cuda:0": -9, "cpu": 0}) == (
        Victim("a", sleeps=True),
        Victim("old"),
    )


def test_sleepers_stay_if_their_leaving_would_not_be_enough_or_somebody_waits_for_them() -> None:
    victim = on_gpu("a")
    small = Resident("small", {"cpu": 1}, 1.0, hold=Hold.SLEEPING)
    assert choose_sleepers([victim], [victim, small], {"cuda:0": -9, "cpu": 0}) == (Victim("a"),)
    wanted = asleep("wanted", 1.0, oldest_wait_s=5.0)
    assert choose_sleepers([victim], [victim, wanted], {"cuda:0": -9, "cpu": 0}) == (Victim("a"),)


def test_a_sleeper_that_is_a_victim_is_unloaded() -> None:
    sleeper = asleep("a", 1.0, sleeping_bytes={"cpu": 1})
    assert choose_sleepers([sleeper], [sleeper], {"cpu": -8}) == (Victim("a"),)
