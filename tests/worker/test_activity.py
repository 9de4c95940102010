"""What the watchdog reports of the main loop."""

from __future__ import annotations

from inference_server.worker.elapsed import MAX_GAP_S
from inference_server.worker.process import Activity


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_job_is_timed_from_its_start_and_the_next_one_anew() -> None:
    clock = Clock()
    activity = Activity(clock)
    assert activity.busy_seconds() == 0
    clock.now_s = 101.0
    with activity:
        for now_s, expected in ((101.5, 0.5), (102.5, 1.5)):
            clock.now_s = now_s
            assert activity.busy_seconds() == expected
        activity.restart()
        clock.now_s = 103.0
        assert activity.busy_seconds() == 0.5
    assert activity.busy_seconds() == 0
    with activity:
        clock.now_s = 103.25
        assert activity.busy_seconds() == 0.25


def test_a_job_that_was_frozen_with_its_process_was_not_busy_meanwhile() -> None:
    clock = Clock()
    activity = Activity(clock)
    with activity:
        clock.now_s += 3600
        assert activity.busy_seconds() == MAX_GAP_S
        clock.now_s += 1
        assert activity.busy_seconds() == MAX_GAP_S + 1
