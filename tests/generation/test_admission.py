"""Queues are bounded, per model and in all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from inference_server.errors import QueueFull
from inference_server.generation.admission import Admission


def admission(max_running: int = 2, max_queued: int = 3, max_queued_total: int = 4) -> Admission:
    return Admission(max_running=max_running, max_queued=max_queued, max_queued_total=max_queued_total)


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
    with pytest.raises(QueueFull), house.admitted("a", 6):
        pass
    assert house.num_in_progress("a") == 0


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
