"""Queues are bounded per model and in all, and places are given back."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from inference_server.errors import QueueFull
from inference_server.generation.admission import Admission


def test_a_models_queue_is_bounded_and_says_when_to_come_again() -> None:
    admission = Admission(max_running=2, max_queued=1, max_queued_total=100)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(admission.admitted("a"))
        with pytest.raises(QueueFull) as refused, admission.admitted("a"):
            pass
        assert refused.value.retry_after_s is not None
        with admission.admitted("b"):
            assert admission.num_requests == 4
    assert admission.num_requests == 0
    with admission.admitted("a"):
        pass


def test_the_servers_queue_is_bounded_over_all_models() -> None:
    admission = Admission(max_running=1, max_queued=10, max_queued_total=3)
    with ExitStack() as held:
        for model in ("a", "a", "b", "b", "c", "c"):
            held.enter_context(admission.admitted(model))
        with pytest.raises(QueueFull), admission.admitted("d"):
            pass


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(max_running=1, max_queued=0, max_queued_total=1)
    with pytest.raises(RuntimeError), admission.admitted("a"):
        raise RuntimeError
    assert admission.num_requests == 0


def test_slow_requests_lengthen_the_advice() -> None:
    admission = Admission(max_running=1, max_queued=0, max_queued_total=1)

    def advice() -> float:
        with admission.admitted("a"), pytest.raises(QueueFull) as refused, admission.admitted("a"):
            pass
        return refused.value.retry_after_s or 0.0

    before = advice()
    for _ in range(50):
        admission.observe(20.0)
    assert advice() > before
