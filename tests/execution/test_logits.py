"""Filters against what their definitions say, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from inference_server.execution.logits import (
    keep_min_p,
    keep_top_k,
    keep_top_p,
)


def noise(*dims: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(dims, generator=torch.Generator().manual_seed(seed)) * scale


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def naive_top_k(row: list[float], k: int) -> set[int]:
    ranked = sorted(range(len(row)), key=lambda token: -row[token])
    return set(ranked[:k] if k > 0 else ranked)


def naive_top_p(row: list[float], p: float) -> set[int]:
    weights = torch.tensor(row, dtype=torch.float64).softmax(-1).tolist()
    chosen: set[int] = set()
    reached = 0.0
    for token in sorted(range(len(row)), key=lambda token: -row[token]):
        if reached >= p and chosen and p < 1:
            break
        chosen.add(token)
        reached += weights[token]
    return chosen


def naive_min_p(row: list[float], min_p: float) -> set[int]:
    weights = torch.tensor(row, dtype=torch.float64).softmax(-1).tolist()
    return {token for token, weight in enumerate(weights) if weight >= min_p * max(weights)}


def test_top_k_keeps_each_rows_own_number_of_tokens() -> None:
    logits, top_k = noise(6, 50), [0, 1, 3, 49, 50, 1000]
    expected = [naive_top_k(row, k) for row, k in zip(logits.tolist(), top_k, strict=True)]
    assert kept(keep_top_k(logits, torch.tensor(top_k), max(top_k))) == expected


def test_top_k_keeps_ties_with_the_last_one() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert kept(keep_top_k(logits, torch.tensor([2]), 2)) == [{1, 2, 3}]


@pytest.mark.parametrize("vocab_size", [40, 3000])
@pytest.mark.parametrize("scale", [0.3, 3.0, 20.0])
def test_top_p_keeps_the_smallest_set_that_reaches_it(vocab_size: int, scale: float) -> None:
    top_p = [0.001, 0.1, 0.5, 0.9, 0.99, 1.0]
    logits = noise(len(top_p), vocab_size, scale=scale)
    results = kept(keep_top_p(logits, torch.tensor(top_p)))
    for result, row, p in zip(results, logits.tolist(), top_p, strict=True):
        assert len(result ^ naive_top_p(row, p)) <= 1  # a boundary may round either way
    assert len(results[0]) >= 1
    assert len(results[-1]) == vocab_size


def test_top_p_of_one_row_does_not_depend_on_the_others() -> None:
    """A flat neighbour makes the whole vocabulary be sorted; a peaked row must not notice."""
    peaked, flat = noise(1, 5000, scale=6.0), torch.zeros(1, 5000)
    alone = keep_top_p(peaked, torch.tensor([0.9]))
    together = keep_top_p(torch.cat([flat, peaked]), torch.tensor([0.95, 0.9]))
    assert torch.equal(together[1:], alone)


def test_min_p_keeps_what_is_likely_enough() -> None:
    min_p = [0.0, 0.01, 0.3, 1.0]
    logits = noise(len(min_p), 50)
    expected = [naive_min_p(row, p) for row, p in zip(logits.tolist(), min_p, strict=True)]
    assert kept(keep_min_p(logits, torch.tensor(min_p))) == expected


def test_filters_that_are_off_return_the_logits_untouched() -> None:
    logits = noise(3, 20)
    assert keep_top_k(logits, torch.zeros(3, dtype=torch.int64), 0) is logits
    assert keep_top_p(logits, torch.ones(3)) is logits
    assert torch.equal(keep_min_p(logits, torch.zeros(3)), logits)


def test_filters_never_empty_a_row() -> None:
    logits = noise(4, 30)
    logits[1] = 0.0  # all equal
    logits[2, 1:] = -math.inf  # one token left
    filtered = keep_min_p(logits, torch.full((4,), 1.0))
    filtered = keep_top_k(filtered, torch.full((4,), 1), 1)
    filtered = keep_top_p(filtered, torch.full((4,), 1e-9))
    assert all(kept(filtered))
