"""A step's cost besides the model, against a fixed loop of plain Python timed in the same moment.

The loop takes a quarter of a millisecond on an ordinary machine, so that a ratio of 1 means 0.25 ms per step.
"""

from __future__ import annotations

import pytest

from benchmarks.scheduler_cost import (
    STEPS_PER_ROUND,
    best_seconds,
    decoding_scheduler,
    encoding_round,
    engine_round,
    scheduling_round,
    step_frame,
)

NUM_SEQS = 64
ROUNDS = 12
MAX_TOKENS = STEPS_PER_ROUND * (ROUNDS + 1) + 2


class Item:
    __slots__ = ("count", "values")

    def __init__(self) -> None:
        self.count = 0
        self.values: list[int] = []

    def add(self, value: int) -> None:
        self.values.append(value)
        self.count += 1


def reference_round() -> int:
    """Plain Python: attributes, calls, lists and dictionaries; never to be made faster."""
    total = 0
    for _ in range(STEPS_PER_ROUND):
        items = {index: Item() for index in range(64)}
        for step in range(50):
            for index, item in items.items():
                item.add(index + step)
        total += sum(item.count for item in items.values())
    return total


def per_reference(*works: object) -> list[float]:
    reference, *others = best_seconds(ROUNDS, reference_round, *works)  # type: ignore[arg-type]
    return [seconds / reference for seconds in others]


@pytest.fixture(scope="module")
def ratios() -> dict[str, float]:
    """The cost of each part of a step of 64 decoding sequences, in reference loops."""
    found = per_reference(
        scheduling_round(decoding_scheduler(NUM_SEQS, MAX_TOKENS)),
        engine_round(decoding_scheduler(NUM_SEQS, MAX_TOKENS)),
        encoding_round(step_frame(decoding_scheduler(NUM_SEQS, MAX_TOKENS))),
    )
    return dict(zip(("schedule", "engine", "encode"), found, strict=True))


def test_scheduling_a_step_of_64_sequences_costs_at_most_a_reference_loop(ratios: dict[str, float]) -> None:
    assert ratios["schedule"] < 1.0, ratios


def test_the_engines_loop_around_it_costs_at_most_a_reference_loop(ratios: dict[str, float]) -> None:
    assert ratios["engine"] < 1.0, ratios


def test_encoding_the_frame_of_a_step_costs_at_most_a_tenth_of_that(ratios: dict[str, float]) -> None:
    assert ratios["encode"] < 0.1, ratios


def test_the_cost_of_a_step_does_not_grow_with_the_square_of_its_sequences() -> None:
    small, large = best_seconds(
        ROUNDS,
        scheduling_round(decoding_scheduler(16, MAX_TOKENS)),
        scheduling_round(decoding_scheduler(256, MAX_TOKENS)),
    )
    assert large < 4 * 16 * small
