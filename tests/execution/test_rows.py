"""Which rows are sampled, and that drafts can only ever save steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.execution.rows import accepted_tokens, new_tokens, sample_rows
from inference_server.scheduling.batch import INVALID_TOKEN, Batch, ScheduledSequence
from tests.execution.paged import make_sequence


def batch_of(*items: ScheduledSequence) -> Batch:
    return Batch(scheduled=items, preempted=())


def drafted(tokens: list[int], drafts: tuple[int, ...], start: int = 0) -> ScheduledSequence:
    num_new = len(tokens) - start + len(drafts)
    return ScheduledSequence(make_sequence(tokens), start, num_new, True, draft_token_ids=drafts)


def test_each_draft_adds_a_row_that_follows_the_drafts_before_it() -> None:
    item, plain = drafted([5, 6, 7], (8, 9), start=2), drafted([1, 2], ())
    silent = ScheduledSequence(make_sequence([1] * 9), 0, 4, False)
    rows = sample_rows(batch_of(item, silent, plain))
    assert [(row.position, row.drafts) for row in rows] == [(3, ()), (4, (8,)), (5, (8, 9)), (2, ())]
    assert new_tokens(item) == [7, 8, 9]
    assert new_tokens(silent) == [1] * 4


def test_a_carried_token_counts_as_the_sequences_last() -> None:
    sequence = make_sequence([1, 2, 3, 4], num_prompt_tokens=3)
    item = ScheduledSequence(sequence, 4, 1, True, carries=True)
    (row,) = sample_rows(batch_of(item))
    assert (row.position, row.carries, row.num_output_tokens) == (5, True, 2)
    assert new_tokens(item) == [0]


@pytest.mark.parametrize(
    "item",
    [
        ScheduledSequence(make_sequence([1, 2]), 2, 2, True, carries=True),
        ScheduledSequence(make_sequence([1, 2]), 2, 1, True, draft_token_ids=(3,), carries=True),
        ScheduledSequence(make_sequence([1, 2]), 0, 3, True),
        ScheduledSequence(make_sequence([1, 2]), 0, 1, True, draft_token_ids=(3, 4)),
    ],
)
def test_tokens_that_do_not_add_up_are_refused(item: ScheduledSequence) -> None:
    with pytest.raises(ValueError):
        new_tokens(item)


def test_results_that_do_not_fit_the_batch_are_refused() -> None:
    with pytest.raises(ValueError):
        accepted_tokens(batch_of(drafted([1], (2,))), [1, 2, 3])


def test_damage_after_accepted_drafts_is_left_to_the_next_step() -> None:
    batch = batch_of(drafted([1], (7, 8)))
    assert accepted_tokens(batch, [7, INVALID_TOKEN, 9]) == [(7,)]
    assert accepted_tokens(batch, [INVALID_TOKEN, 8, 9]) == [(INVALID_TOKEN,)]


tokens = st.integers(0, 3)


@given(st.lists(st.tuples(st.lists(tokens, max_size=4), st.integers(0, 2**32)), min_size=1, max_size=4))
def test_what_is_accepted_is_what_one_token_at_a_time_would_have_given(
    entries: list[tuple[list[int], int]],
) -> None:
    """The model: the next token is a function of the whole prefix."""

    def following(seed: int, prefix: tuple[int, ...]) -> int:
        return hash((seed, prefix)) % 4

    batch = batch_of(*(drafted([1], tuple(drafts)) for drafts, _ in entries))
    sampled = [
        following(seed, tuple(drafts[:count])) for drafts, seed in entries for count in range(len(drafts) + 1)
    ]
    for (drafts, seed), accepted in zip(entries, accepted_tokens(batch, sampled), strict=True):
        plain: tuple[int, ...] = ()
        for _ in accepted:
            plain += (following(seed, plain),)
        assert accepted == plain
        assert len(accepted) == len(drafts) + 1 or drafts[len(accepted) - 1] != accepted[-1]
