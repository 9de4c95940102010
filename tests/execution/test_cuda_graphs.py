"""The ladder of captured sizes, what is captured at each, and what is not captured at all."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inference_server.execution.cuda_graphs import (
    DecodeGraphs,
    capture_decodes,
    greedy,
    ladder,
    why_not_capturable,
)
from inference_server.execution.paged_inputs import NUM_HEAD_PARTS
from inference_server.execution.paged_step import PagedStep
from inference_server.scheduling.batch import INVALID_TOKEN

VOCAB_SIZE = 11
TABLE = torch.zeros((8, 4), dtype=torch.int32)


def logits_of(step: PagedStep) -> torch.Tensor:
    """Stands in for a model: each row depends on everything that a step says of it."""
    assert step.decodes is not None
    region = step.decodes
    features = torch.stack(
        [step.input_ids[0], step.position_ids[0], step.slots, region.kv_lengths, region.table_rows]
    )
    wave = torch.arange(1, NUM_HEAD_PARTS + 1)[:, None, None] * torch.arange(1, VOCAB_SIZE + 1)
    return torch.sin(features[:, :, None] * wave).sum(0)


def again(compute: Callable[[], None]) -> Callable[[], None]:
    compute()
    return compute


def head(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (NUM_HEAD_PARTS * size,), generator=generator, dtype=torch.int32)


@given(st.integers(1, 600))
def test_the_ladder_rises_to_the_largest_batch_and_pads_little(max_num_seqs: int) -> None:
    sizes = ladder(max_num_seqs)
    assert sizes[0] == 1
    assert sizes[-1] == max_num_seqs
    assert list(sizes) == sorted(set(sizes))
    assert all(later <= max(earlier * 2, earlier + 8) for earlier, later in itertools.pairwise(sizes))


def test_a_replay_computes_what_is_in_the_fixed_tensors() -> None:
    graphs = DecodeGraphs((1, 2, 4), forward=logits_of, block_table=TABLE, capture=again)
    assert [graphs.size_for(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, None]
    for size in (4, 1, 2, 4):
        filled = head(size, size)
        logits, tokens = graphs.replay(size, filled)
        parts = filled.view(NUM_HEAD_PARTS, size)
        wave = torch.arange(1, NUM_HEAD_PARTS + 1)[:, None, None] * torch.arange(1, VOCAB_SIZE + 1)
        expected = torch.sin(parts[:, :, None] * wave).sum(0)
        torch.testing.assert_close(logits, expected)
        assert tokens.tolist() == expected.argmax(-1).tolist()


def test_the_largest_is_captured_first_and_only_padding_is_computed_then() -> None:
    seen: list[tuple[int, set[int]]] = []

    def forward(step: PagedStep) -> torch.Tensor:
        seen.append((step.slots.shape[0], set(step.slots.tolist())))
        assert step.decodes is not None
        assert not step.decodes.kv_lengths.any()
        return logits_of(step)

    DecodeGraphs((1, 2, 4), forward=forward, block_table=TABLE, capture=again)
    assert [size for size, _ in seen] == [4, 4, 2, 1]
    assert all(slots == {-1} for _, slots in seen)


def capture(forward: Any, how: Any = again) -> DecodeGraphs | None:
    return capture_decodes(
        (1, 4), forward=forward, block_table=TABLE, vocab_size=VOCAB_SIZE, num_slots=100, capture=how
    )


def test_a_capture_that_fails_leaves_steps_eager(caplog: pytest.LogCaptureFixture) -> None:
    def fails(compute: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        assert capture(logits_of, fails) is None
    assert "run eagerly" in caplog.text


def test_replays_that_differ_from_eager_steps_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    def stale(compute: Callable[[], None]) -> Callable[[], None]:
        compute()
        return lambda: None  # leaves what the capture computed

    with caplog.at_level(logging.WARNING):
        assert capture(logits_of, stale) is None
    assert "differ" in caplog.text
    assert capture(logits_of) is not None


def test_running_out_of_memory_is_not_hidden() -> None:
    def full(compute: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        capture(logits_of, full)


def test_greedy_takes_the_largest_and_marks_what_is_not_finite() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, float("nan"), 0.0], [float("inf"), 0.0, 0.0]])
    assert greedy(logits).tolist() == [1, INVALID_TOKEN, INVALID_TOKEN]


class Linear8bitLt(nn.Module):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.state = SimpleNamespace(threshold=threshold)


def test_what_waits_for_the_device_is_not_captured() -> None:
    dense = SimpleNamespace()
    assert why_not_capturable(nn.Linear(2, 2), dense) is None
    assert why_not_capturable(nn.Sequential(Linear8bitLt(0.0)), dense) is None
    assert "outliers" in str(why_not_capturable(nn.Sequential(Linear8bitLt(6.0)), dense))
    experts = SimpleNamespace(num_experts=8, _experts_implementation="eager")
    assert "experts" in str(why_not_capturable(nn.Linear(2, 2), experts))
    experts._experts_implementation = "grouped_mm"
    assert why_not_capturable(nn.Linear(2, 2), experts) is None
