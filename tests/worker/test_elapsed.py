"""Time counts while somebody looks."""

from __future__ import annotations

import pytest

from inference_server.worker.elapsed import MAX_GAP_S, Elapsed


def test_it_grows_from_look_to_look_and_can_start_again() -> None:
    elapsed = Elapsed(100.0)
    assert [elapsed.look(now_s) for now_s in (101.0, 102.5)] == [1.0, 2.5]
    elapsed.restart(102.75)
    assert elapsed.look(103.0) == 0.25


@pytest.mark.parametrize("stood_still_s", [5.0, 3600.0])
def test_the_time_in_which_nobody_could_look_does_not_count(stood_still_s: float) -> None:
    elapsed = Elapsed(100.0)
    elapsed.look(101.0)
    assert elapsed.look(101.0 + stood_still_s) == 1.0 + MAX_GAP_S
    assert elapsed.look(102.0 + stood_still_s) == 2.0 + MAX_GAP_S


def test_what_lasts_is_found_out_although_every_look_is_late() -> None:
    elapsed = Elapsed(0.0)
    assert max(elapsed.look(float(now_s)) for now_s in range(0, 100, 5)) == 19 * MAX_GAP_S
