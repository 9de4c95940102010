"""Queues are bounded, per model and in all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.errors import InvalidRequest, QueueFull
from inference_server.generation.admission import Admission, QueueLimits


def admission(**limits: int) -> Admission:
    defaults = {"max_running": 2, "max_queued": 3, "max_queued_total": 4}
    tokens = {"max_queued_tokens": 100, "max_queued_tokens_total": 150}
    return Admission(QueueLimits(**defaults | tokens | limits))


def test_a_model_takes_what_it_runs_plus_its_queue() -> None:
    house = admission()
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(house.admitted("a"))
        assert house.num_queued("a") == 3
        with pytest.raises(QueueFull, match="model's queue"), house.admitted("a"):
            pass
        assert house.num_requests == 5
    assert house.num_requests == 0


def test_the_total_is_over_all_models_but_running_ones_are_free() -> None:
    house = admission()
    with ExitStack() as stack:
        for model in "aaaaabbb":
            stack.enter_context(house.admitted(model))
        with pytest.raises(QueueFull, match="server's queue"), house.admitted("b"):
            pass
        stack.enter_context(house.admitted("c"))  # nothing of c waits


def test_a_request_of_many_sequences_needs_room_for_all() -> None:
    house = admission()
    with house.admitted("a", 5):
        assert house.num_in_progress("a") == 5
        with pytest.raises(QueueFull), house.admitted("a", 5):
            pass
    assert house.num_in_progress("a") == 0


@pytest.mark.parametrize(
    ("limits", "most"), [({}, 5), ({"max_queued_total": 1}, 3), ({"max_queued": 0}, 2)], ids=str
)
def test_what_no_empty_house_could_take_need_not_be_tried_again(limits: dict[str, int], most: int) -> None:
    house = admission(**limits)
    with house.admitted("a", most):
        assert house.num_in_progress("a") == most
    with pytest.raises(InvalidRequest, match=f"at most {most} at once"), house.admitted("a", most + 1):
        pass


def test_without_any_queue_free_places_are_still_given() -> None:
    house = admission(max_queued=0, max_queued_total=0)
    with house.admitted("a"), house.admitted("a"), pytest.raises(QueueFull), house.admitted("a"):
        pass


def test_retry_after_follows_how_long_requests_take() -> None:
    house = admission(max_running=1, max_queued=1)
    for _ in range(100):
        house.observe(20.0)
    with house.admitted("a"), house.admitted("a"), pytest.raises(QueueFull) as caught, house.admitted("a"):
        pass
    assert 30 <= (caught.value.retry_after_s or 0) <= 60


def test_a_request_that_fails_gives_its_place_back() -> None:
    house = admission(max_running=1, max_queued=0)
    with pytest.raises(RuntimeError), house.admitted("a"):
        raise RuntimeError
    assert house.num_requests == 0


def test_prompts_that_wait_are_bounded_in_tokens_per_model_and_in_all() -> None:
    house = admission()
    with house.admitted("a") as first, house.admitted("a") as second, house.admitted("b") as other:
        first.hold_tokens(80)
        with pytest.raises(QueueFull, match="80 tokens wait for the model"):
            second.hold_tokens(21)
        second.hold_tokens(20)
        with pytest.raises(QueueFull, match="100 tokens wait in all"):
            other.hold_tokens(51)
        first.release_tokens()
        other.hold_tokens(51)
        assert house.num_queued_tokens == 71
    assert house.num_queued_tokens == 0


def test_a_prompt_that_nobody_waits_before_is_never_too_long() -> None:
    house = admission()
    with house.admitted("a") as place:
        place.hold_tokens(10_000)
        place.hold_tokens(20_000)  # it was counted anew, by the tokenizer of another revision
        assert house.num_queued_tokens == 20_000


def test_one_tenant_leaves_room_for_others() -> None:
    house = admission(max_running=4, max_queued=40, max_queued_total=100)
    with ExitStack() as stack:

        def fill(tenant: str) -> int:
            for number in range(100):
                try:
                    stack.enter_context(house.admitted("a", 1, tenant))
                except QueueFull:
                    return number
            return 100

        assert fill("greedy") == 4 + 30
        assert 1 <= fill("second") <= 10
        assert fill("third") >= 1
        assert fill("greedy") == 0
    assert house.num_requests == 0


def test_a_tenant_alone_in_a_house_without_keys_may_have_all_of_it() -> None:
    house = admission(max_running=4, max_queued=40, max_queued_total=100)
    with ExitStack() as stack:
        for _ in range(44):
            stack.enter_context(house.admitted("a"))
        with pytest.raises(QueueFull), house.admitted("a"):
            pass


@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from(["", "x", "y"]), st.integers(1, 4), st.integers(0, 90)
        ),
        max_size=40,
    ),
    leaves=st.lists(st.integers(0, 100), max_size=40),
)
def test_whatever_comes_and_goes_limits_hold_and_nothing_is_left(
    moves: list[tuple[str, str, int, int]], leaves: list[int]
) -> None:
    house = admission(max_running=3, max_queued=6, max_queued_total=9)
    inside: list[ExitStack] = []
    for index, (model, tenant, num_seqs, num_tokens) in enumerate(moves):
        stack = ExitStack()
        try:
            place = stack.enter_context(house.admitted(model, num_seqs, tenant))
            place.hold_tokens(num_tokens)
            inside.append(stack)
        except QueueFull:
            stack.close()
        assert house.num_in_progress("a") <= 9
        assert house.num_queued("a") + house.num_queued("b") <= 9
        assert house.num_queued_tokens <= 150
        if index < len(leaves) and inside:
            inside.pop(leaves[index] % len(inside)).close()
    for stack in inside:
        stack.close()
    assert (house.num_requests, house.num_queued_tokens) == (0, 0)
