"""Bit masks of allowed tokens: applied they leave exactly those, and the choice knows when there are none."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Seq

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_server.execution.masks import plan_masks
from inference_server.execution.rows import SampleRow
from inference_server.execution.sampler import Sampler
from inference_server.scheduling.batch import INVALID_TOKEN
from inference_server.scheduling.sequence import Sequence
from inference_server.types import GenerationRequest, GrammarSpec, SamplingParams


class Only:
    """Allows these tokens."""

    def __init__(self, allowed: Seq[int]) -> None:
        self.allowed = allowed
        self.error = None if allowed else "nothing is allowed"
        self.outputs: list[list[int]] = []

    def write_mask(self, output_token_ids: Seq[int], address: int, num_bytes: int) -> None:
        self.outputs.append(list(output_token_ids))
        words = (ctypes.c_uint32 * (num_bytes // 4)).from_address(address)
        for token in self.allowed:
            words[token // 32] |= 1 << (token % 32)


def row(constraint: Only | None, **sampling: object) -> SampleRow:
    grammar = None if constraint is None else GrammarSpec("regex", ".", "guided_regex")
    changes = {"temperature": 0.0, "grammar": grammar, **sampling}
    wanted = SamplingParams(max_tokens=9, **changes)  # type: ignore[arg-type]
    request = GenerationRequest(request_id="r", prompt_token_ids=(1, 2), sampling=wanted)
    sequence = Sequence(request, arrival=0, max_num_tokens=20, constraint=constraint)
    sequence.append(7)
    return SampleRow(sequence, 3)


@given(
    vocab_size=st.integers(1, 130),
    allowed=st.lists(st.none() | st.sets(st.integers(0, 129), min_size=1), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_what_is_left_is_what_is_allowed(vocab_size: int, allowed: list[set[int] | None], seed: int) -> None:
    within = [None if one is None else sorted({token % vocab_size for token in one}) for one in allowed]
    rows = [row(None if tokens is None else Only(tokens)) for tokens in within]
    logits = torch.randn(len(rows), vocab_size, generator=torch.Generator().manual_seed(seed))
    plan = plan_masks(rows, vocab_size)
    masked = logits.clone()
    if plan:
        plan.apply(masked, torch.from_numpy(plan.ints()))
    for tokens, before, after in zip(within, logits, masked, strict=True):
        kept = set(range(vocab_size)) if tokens is None else set(tokens)
        assert {int(token) for token in after.isfinite().nonzero()} == kept
        assert all(after[token] == before[token] for token in kept)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_sampler_chooses_what_is_allowed_beside_rows_that_are_free(temperature: float) -> None:
    sampler = Sampler((0,), b"salt")
    logits = torch.zeros(3, 100)
    logits[:, 99] = 50.0
    logits[:, 3] = 20.0
    constrained = Only([3, 5])
    rows = [row(None), row(constrained, temperature=temperature, top_p=0.9), row(Only([]))]
    assert sampler.sample(logits, rows) == [99, 3, INVALID_TOKEN]
    assert constrained.outputs == [[7]]


def test_penalties_come_before_the_mask() -> None:
    logits = torch.zeros(1, 64)
    logits[0, 10] = 5.0
    rows = [row(Only([10, 11]), logit_bias=((10, -10.0), (12, 99.0)))]
    assert Sampler((), b"salt").sample(logits, rows) == [11]
