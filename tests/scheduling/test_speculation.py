"""Guesses: where they come from, when they pause, and that they change nothing but the number of steps."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_server.scheduling.speculation import (
    MAX_INDEXED_AT_ONCE,
    MAX_NGRAM,
    MIN_NGRAM,
    Drafter,
    NgramIndex,
)
from inference_server.types import Speculation
from tests.scheduling.simulation import Simulation, make_config, make_request


def rescanned(token_ids: list[int]) -> int | None:
    """The position after the latest earlier occurrence of the longest suffix, by looking at everything."""
    for size in range(min(MAX_NGRAM, len(token_ids)), MIN_NGRAM - 1, -1):
        for end in range(len(token_ids) - 1, size - 1, -1):
            if token_ids[end - size : end] == token_ids[-size:]:
                return end
    return None


@given(st.lists(st.integers(0, 2), max_size=60), st.randoms())
@settings(deadline=None)
def test_the_incremental_index_finds_what_a_rescan_finds(token_ids: list[int], rng: random.Random) -> None:
    index = NgramIndex()
    end = 0
    while end <= len(token_ids):
        assert index.catch_up(token_ids[:end])
        assert index.find(token_ids[:end]) == rescanned(token_ids[:end])
        end += rng.randint(1, 5)


def test_what_followed_the_latest_occurrence_of_the_longest_suffix_is_proposed() -> None:
    drafter = Drafter(8)
    assert drafter.propose([1, 2, 3, 10, 11, 12, 13, 0, 1, 2, 3], 8) == (10, 11, 12, 13)
    assert Drafter(8).propose([1, 2, 3, 10, 5, 2, 3, 20, 6, 1, 2, 3], 1) == (10,)
    assert Drafter(8).propose([1, 2, 10, 5, 1, 2, 20, 6, 1, 2], 1) == (20,)


def test_nothing_is_proposed_where_nothing_repeats_or_nothing_is_wanted() -> None:
    drafter = Drafter(8)
    assert drafter.propose([1, 2, 3, 4, 5], 8) == ()
    assert drafter.propose([1, 2, 3, 4, 5, 1, 2], 0) == ()
    assert not Drafter(8).expects_draft([1])
    assert Drafter(8).expects_draft([1, 2, 1, 2])


def test_a_guess_that_runs_into_the_end_repeats_from_there() -> None:
    assert Drafter(8).propose([7, 1, 2, 1, 2], 4) == (1, 2, 1, 2)
    assert Drafter(8).propose([5, 5, 5], 3) == (5, 5, 5)


def learn(drafter: Drafter, num_drafts: int, num_accepted: int, num_tokens: int = 0) -> None:
    drafter.learn(num_tokens=num_tokens, num_drafts=num_drafts, num_accepted=num_accepted)


REPETITION = [1, 2, 3] * 40


def test_the_draft_length_follows_what_is_accepted() -> None:
    drafter = Drafter(16)
    lengths = []
    for num_accepted in (4, 8, 16, 16, 5):
        lengths.append(len(drafter.propose(REPETITION, 100)))
        learn(drafter, lengths[-1], num_accepted)
    assert lengths == [4, 8, 16, 16, 16]
    assert len(drafter.propose(REPETITION, 100)) == 5
    learn(drafter, 5, 0)
    assert len(drafter.propose(REPETITION, 100)) == 1


def test_a_draft_cut_short_by_a_limit_does_not_shorten_the_next() -> None:
    drafter = Drafter(16)
    learn(drafter, 4, 4)
    learn(drafter, 1, 1)
    assert len(drafter.propose(REPETITION, 100)) == 8


def test_guesses_that_are_wrong_pause_longer_and_longer_and_one_right_one_ends_it() -> None:
    drafter = Drafter(8)
    tokens = [1, 2] * 2000
    tried = []
    for num_tokens in range(20, 3000):
        if drafts := drafter.propose(tokens[:num_tokens], 8):
            tried.append(num_tokens)
            learn(drafter, len(drafts), 0, num_tokens)
    assert len(tried) < 12, "wrong guesses go on"
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses[-1] == 512
    assert pauses == sorted(pauses)
    assert max(tried) > 2000, "it never tries again"
    for num_tokens in range(3000, 3600):
        if drafts := drafter.propose(tokens[:num_tokens], 8):
            learn(drafter, len(drafts), len(drafts), num_tokens)
    assert len(drafter.propose(tokens[:3600], 8)) == 8


def test_a_very_long_prompt_is_indexed_over_several_steps() -> None:
    tokens = [*range(2 * MAX_INDEXED_AT_ONCE), 0, 1]
    drafter = Drafter(4)
    assert [bool(drafter.propose(tokens, 4)) for _ in range(3)] == [False, False, True]


def run(simulation: Simulation, depth: int) -> int:
    """To the end, with `depth` steps in flight; the number of steps."""
    num_steps = 0
    while simulation.has_work:
        simulation.launch(depth)
        simulation.collect()
        num_steps += 1
    return num_steps


def test_a_predictable_text_takes_a_fraction_of_the_steps_at_any_depth() -> None:
    for depth in (1, 2):
        config = make_config(speculation=Speculation(), max_num_batched_tokens=32, max_model_len=100)
        simulation = Simulation(config, num_choices=1)
        request = make_request("a", [0, 0, 0], max_tokens=80)
        simulation.add(request)
        assert run(simulation, depth) < 20
        simulation.assert_output(request)
        stats = simulation.scheduler.stats()
        assert stats.num_accepted_tokens == stats.num_draft_tokens > 60


def test_an_unpredictable_text_takes_no_more_steps_than_without_guesses_and_few_drafts() -> None:
    for depth in (1, 2):
        config = make_config(
            speculation=Speculation(), max_num_batched_tokens=32, max_model_len=1000, num_blocks=250
        )
        simulation = Simulation(config, num_choices=4)
        request = make_request("a", [0, 1, 0, 1], max_tokens=900)
        simulation.add(request)
        num_steps = run(simulation, depth)
        simulation.assert_output(request)
        assert num_steps <= 901
        assert simulation.scheduler.stats().num_draft_tokens < 400


def test_nobody_guesses_while_too_many_run() -> None:
    config = make_config(
        speculation=Speculation(max_drafting_seqs=1), max_num_batched_tokens=32, max_model_len=60
    )
    simulation = Simulation(config, num_choices=1)
    simulation.add(make_request("a", [0, 0, 0], max_tokens=40))
    simulation.add(make_request("b", [0, 0, 0], max_tokens=10))
    while "b" not in simulation.reasons:
        simulation.step()
    assert simulation.scheduler.stats().num_draft_tokens == 0
    simulation.run()
    assert simulation.scheduler.stats().num_draft_tokens > 0


def test_drafts_take_no_block_that_another_needs() -> None:
    config = make_config(speculation=Speculation(), num_blocks=8, max_num_batched_tokens=64)
    plain = make_config(num_blocks=8, max_num_batched_tokens=64)
    preemptions = []
    for config_ in (plain, config):
        simulation = Simulation(config_, num_choices=1)
        requests = [make_request(str(i), [0] * 5, max_tokens=11, salt=str(i)) for i in range(2)]
        for request in requests:
            simulation.add(request)
        simulation.run()
        for request in requests:
            simulation.assert_output(request)
        preemptions.append(simulation.scheduler.stats().num_preemptions)
    assert preemptions == [0, 0]
