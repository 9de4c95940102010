from __future__ import annotations

import pytest
import torch

from inference_server.execution.pooling import pool

STATES = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]]])
MASK = torch.tensor([[[1.0], [1.0], [0.0]]])  # the last one is padding


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cls", [1.0, -2.0]),
        ("max", [3.0, -2.0]),
        ("mean", [2.0, -3.0]),
        ("mean_sqrt_len", [4.0 / 2**0.5, -6.0 / 2**0.5]),
        ("weightedmean", [7.0 / 3, -10.0 / 3]),
        ("lasttoken", [3.0, -4.0]),
    ],
)
def test_padding_has_no_part_in_any_pooling(name: str, expected: list[float]) -> None:
    torch.testing.assert_close(pool(STATES, MASK, [name]), torch.tensor([expected]))


def test_several_poolings_stand_in_a_row() -> None:
    assert pool(STATES, MASK, ["cls", "mean"]).tolist() == [[1.0, -2.0, 2.0, -3.0]]
