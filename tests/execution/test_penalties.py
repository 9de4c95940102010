"""Penalties against what their definitions say, one token at a time; drafts and carried tokens included."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from inference_server.execution.penalties import needs_processing, plan_penalties
from inference_server.execution.rows import SampleRow
from tests.execution.paged import make_row
from tests.execution.test_logits import noise


def penalized(
    logits: torch.Tensor, rows: list[SampleRow], eos: tuple[int, ...] = (), last_tokens: Any = None
) -> torch.Tensor:
    plan = plan_penalties(rows, eos, logits.shape[1])
    changed = logits.clone()
    if plan:
        ints = torch.tensor(plan.ints(), dtype=torch.int32)
        floats = torch.tensor(plan.floats(), dtype=torch.float64)
        last = torch.zeros(len(rows), dtype=torch.int64) if last_tokens is None else last_tokens
        plan.apply(changed, ints, floats, last)
    return changed


def test_penalties_are_what_their_definitions_say() -> None:
    row = make_row(
        [1, 2, 3, 3, 5, 5, 5],
        num_prompt_tokens=3,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    before = noise(1, 10)
    after = penalized(before, [row])
    for token, old in enumerate(before[0].tolist()):
        expected = old
        if token in (1, 2, 3, 5):  # prompt and output
            expected = old / 1.5 if old > 0 else old * 1.5
        count = [3, 5, 5, 5].count(token)  # output only
        expected -= 0.25 * count + (0.5 if count else 0.0)
        assert after[0, token].item() == pytest.approx(expected, abs=1e-5)


SETTINGS: list[dict[str, float]] = [
    {"repetition_penalty": 1.4},
    {"presence_penalty": 0.6},
    {"frequency_penalty": 0.4},
    {"repetition_penalty": 0.8, "presence_penalty": -0.3, "frequency_penalty": 0.9},
    {},
]


@pytest.mark.parametrize("last", [4, 5, 7])  # in the prompt, in the output, new
def test_a_carried_token_and_a_draft_count_like_the_sequences_own(last: int) -> None:
    tokens = [1, 2, 4, 5, 6]
    whole = [make_row([*tokens, last], num_prompt_tokens=3, **setting) for setting in SETTINGS]
    known = [make_row(tokens, num_prompt_tokens=3, **setting) for setting in SETTINGS]
    carried = [replace(row, position=row.position + 1, carries=True) for row in known]
    drafts = [replace(row, position=row.position + 1, drafts=(last,)) for row in known]
    logits = noise(len(SETTINGS), 12)
    expected = penalized(logits, whole)
    assert not torch.equal(expected, logits)
    torch.testing.assert_close(penalized(logits, drafts), expected)
    last_tokens = torch.full((len(SETTINGS),), last)
    torch.testing.assert_close(penalized(logits, carried, last_tokens=last_tokens), expected)


def test_rows_are_penalized_apart() -> None:
    rows = [make_row([n, n + 1], num_prompt_tokens=1, **setting) for n, setting in enumerate(SETTINGS)]
    logits = noise(len(rows), 9)
    together = penalized(logits, rows)
    for number, row in enumerate(rows):
        assert torch.equal(penalized(logits[[number]], [row])[0], together[number])


def test_penalties_of_a_sequence_without_output_change_nothing_else() -> None:
    before = noise(1, 6)
    row = make_row([1, 2], presence_penalty=2.0, frequency_penalty=2.0)
    assert torch.equal(penalized(before, [row]), before)


@pytest.mark.parametrize(("num_output", "forbidden"), [(0, True), (2, True), (3, False), (4, False)])
def test_min_tokens_forbids_every_end_until_it_is_reached(num_output: int, forbidden: bool) -> None:
    row = make_row([1] + [4] * num_output, num_prompt_tokens=1, min_tokens=3, stop_token_ids=(7, 1000))
    after = penalized(noise(1, 10), [row], (2, 3))
    ends = {token for token in range(10) if after[0, token].item() == -math.inf}
    assert ends == ({2, 3, 7} if forbidden else set())
    assert needs_processing(row) == forbidden


@pytest.mark.parametrize(
    ("sampling", "needed"),
    [
        ({}, False),
        ({"temperature": 0.0, "top_k": 5, "seed": 1}, False),
        ({"presence_penalty": -0.1}, True),
        ({"frequency_penalty": 0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"min_tokens": 1}, True),
    ],
)
def test_rows_are_processed_only_where_it_changes_something(sampling: dict[str, float], needed: bool) -> None:
    assert needs_processing(make_row([1, 2], **sampling)) == needed
