"""Budgets refill steadily and hold a minute's worth; what a key may ask is never more, over any time."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.access.keys import Key, KeyRing, digest_of
from inference_server.access.limits import Budget, KeyLimiter
from inference_server.errors import QuotaExceeded, RateLimited

STEPS = st.lists(st.tuples(st.floats(0, 90), st.integers(1, 40)), max_size=40)


@given(per_minute=st.integers(1, 100), steps=STEPS)
def test_what_is_taken_is_at_most_a_minutes_worth_and_what_came_since(
    per_minute: int, steps: list[tuple[float, int]]
) -> None:
    budget, now_s, taken = Budget(per_minute, float(per_minute), 0.0), 0.0, 0
    for pause_s, units in steps:
        now_s += pause_s
        if budget.wait_s(units, now_s) == 0 and units <= per_minute:
            budget.take(units, now_s)
            taken += units
        assert taken <= per_minute + now_s * per_minute / 60 + 1e-6
        assert budget.remaining(now_s) <= per_minute


@given(per_minute=st.integers(1, 100), steps=STEPS)
def test_after_the_wait_that_was_told_it_is_there(per_minute: int, steps: list[tuple[float, int]]) -> None:
    budget, now_s = Budget(per_minute, float(per_minute), 0.0), 0.0
    for pause_s, units in steps:
        now_s += pause_s
        budget.take(units, now_s)  # may be owed
        wait_s = budget.wait_s(1, now_s)
        assert budget.remaining(now_s + wait_s) >= 1 - 1e-6
        if wait_s > 0.01:
            assert budget.remaining(now_s + 0.9 * wait_s) < 1


def limiter(**limits: int) -> KeyLimiter:
    return KeyLimiter(Key("k", b"", **limits), 0.0)  # type: ignore[arg-type]


def test_requests_at_once_are_counted_until_they_end() -> None:
    found = limiter(max_concurrency=2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(found.admitted(0.0))
        with pytest.raises(RateLimited, match="2 requests at once"), found.admitted(0.0):
            pass
    assert found.num_running == 0
    with found.admitted(0.0):
        pass


def test_requests_a_minute_say_when_to_come_again() -> None:
    found = limiter(requests_per_minute=2)
    for _ in range(2):
        with found.admitted(0.0):
            pass
    with pytest.raises(RateLimited) as refused, found.admitted(0.0):
        pass
    assert refused.value.retry_after_s == pytest.approx(30)
    assert found.headers(0.0)["x-ratelimit-remaining-requests"] == "0"
    with found.admitted(30.0):
        pass


def test_tokens_are_settled_afterwards_and_owed_ones_are_waited_for() -> None:
    found = limiter(tokens_per_minute=100)
    with found.admitted(0.0):
        found.spend(250, 0.0)
    with pytest.raises(QuotaExceeded) as refused, found.admitted(0.0):
        pass
    assert refused.value.retry_after_s == pytest.approx(0.6 * 151)
    with found.admitted(91.0):
        pass


def test_a_ring_finds_its_keys_and_nothing_else() -> None:
    ring = KeyRing([Key("a", digest_of(b"first")), Key("b", digest_of(b"second"))])
    found = ring.find(b"second")
    assert found is not None
    assert found.name == "b"
    assert ring.find(b"") is None
    assert ring.find(b"Second") is None
