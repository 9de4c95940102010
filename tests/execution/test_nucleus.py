"""The GPU's top-p filter, interpreted, keeps what the sorting one keeps."""

from __future__ import annotations

import pytest
import torch

from tests.execution.triton_here import require_triton

require_triton()

from inference_server.execution.logits import keep_top_p  # noqa: E402
from inference_server.execution.nucleus import keep_top_p_on_device  # noqa: E402
from tests.execution.test_logits import kept, noise  # noqa: E402

TOP_P = [0.001, 0.1, 0.5, 0.9, 0.99, 1.0]


@pytest.mark.parametrize("vocab_size", [40, 5000])
@pytest.mark.parametrize("scale", [0.3, 20.0])
def test_it_keeps_what_sorting_keeps(vocab_size: int, scale: float) -> None:
    logits = noise(len(TOP_P), vocab_size, scale=scale)
    logits[:, ::3] = -float("inf")  # filtered before
    top_p = torch.tensor(TOP_P)
    expected, found = kept(keep_top_p(logits, top_p)), kept(keep_top_p_on_device(logits, top_p))
    for one, other in zip(expected, found, strict=True):
        assert len(one ^ other) <= 1  # a boundary may round either way
        assert other


def test_ties_with_the_last_kept_token_stay_and_a_lone_token_is_kept() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0], [-float("inf")] * 4 + [-7.0]])
    assert kept(keep_top_p_on_device(logits, torch.tensor([0.7, 0.2]))) == [{1, 2, 3}, {4}]


def test_huge_and_negative_logits_are_no_trouble() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [-1e30, -1e30, -2e30], [-5.0, -5.1, -90.0]])
    assert kept(keep_top_p_on_device(logits, torch.tensor([0.9, 0.9, 0.9]))) == [{0}, {0, 1}, {0, 1}]
