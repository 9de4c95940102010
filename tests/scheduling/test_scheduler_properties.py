"""What holds for every mixture of arrivals, aborts, priorities, lengths, prefixes, salts and pool sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from inference_server.errors import ContextTooLong
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.types import GenerationRequest, GrammarSpec, Speculation
from tests.scheduling.simulation import VOCAB_SIZE, Simulation, make_config, make_request

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
THOROUGH = settings(max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    """Half of the pools hold little more than one long sequence, so that blocks run out often."""
    block_size = draw(st.sampled_from([1, 2, 3, 4, 8]))
    max_model_len = draw(st.integers(2, 12) | st.integers(24, 48))
    tight = -(-max_model_len // block_size) + draw(st.integers(0, 6))
    return make_config(
        max_num_seqs=draw(st.integers(1, 3) | st.integers(4, 8)),
        max_num_batched_tokens=draw(st.integers(1, 8) | st.integers(16, 64)),
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=draw(st.just(tight) | st.integers(1, 64)),
        enable_prefix_caching=draw(st.sampled_from([True, True, True, False])),
        eos_token_ids=draw(st.sampled_from([frozenset[int](), frozenset({7}), frozenset(range(0, 50, 7))])),
        prefill_slowdown=draw(st.sampled_from([0.0, 0.0, 1.0, 2.5])),
        long_prompt_tokens=draw(st.sampled_from([0, 4, 12])),
        speculation=draw(
            st.none() | st.builds(Speculation, max_draft_tokens=lengths, max_drafting_seqs=lengths)
        ),
    )


lengths = st.sampled_from([1, 2, 3, 8])
tenants = ["", "", "a", "b"]
ANY_TEXT = GrammarSpec("regex", ".*", "guided_regex")


# Few tokens and repeated pieces, so that prompts share prefixes often and in many ways.
prompts = st.lists(
    st.sampled_from([(1,), (2,), (1, 2, 1, 2), (3,) * 8, (1, 2, 3, 4) * 4]), min_size=1, max_size=5
)


@dataclass
class Arrival:
    """A request, the step at which it comes and, perhaps, when it is aborted."""

    request: GenerationRequest
    step: int
    abort_step: int | None = None
    abort_in_flight: bool = False


@dataclass
class Story:
    """A configuration and everything that happens to it.

    `depth` steps are in flight at once, those of `lost_steps` fail, and the model chooses among `num_choices`
    tokens.
    """

    config: SchedulerConfig
    arrivals: list[Arrival]
    lost_steps: set[int] = field(default_factory=set)
    depth: int = 1
    num_choices: int = VOCAB_SIZE


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Mostly short waits between arrivals, so that much runs at once."""
    arrivals = []
    for index in range(draw(st.integers(3, 10))):
        prompt = [token for piece in draw(prompts) for token in piece]
        request = make_request(
            str(index),
            prompt,
            max_tokens=draw(st.integers(1, 5) | st.integers(10, 40)),
            ignore_eos=draw(st.sampled_from([True, True, False])),
            stop_token_ids=draw(st.sampled_from([(), (), (), (3, 4)])),
            salt=draw(st.sampled_from(["", "", "tenant"])),
            priority=draw(st.sampled_from([0, 0, 0, -1, 1])),
            tenant=draw(st.sampled_from(tenants)),
            grammar=draw(st.sampled_from([None, None, ANY_TEXT])),
        )
        step = draw(st.just(0) | st.integers(0, 20))
        abort_step = draw(st.none() | st.none() | st.none() | st.integers(step, step + 15))
        arrivals.append(Arrival(request, step, abort_step, draw(st.booleans())))
    return Story(
        draw(configs()),
        arrivals,
        lost_steps=draw(st.just(set[int]()) | st.sets(st.integers(0, 40), max_size=2)),
        depth=draw(st.sampled_from([1, 2])),
        num_choices=draw(st.sampled_from([1, 2, 3, VOCAB_SIZE])),
    )


def busy_story(seed: int) -> Story:
    """Hypothesis likes small cases; these are the crowded ones: nearly all of them preempt and share."""
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 3, 4, 8])
    max_model_len = rng.randint(24, 64)
    config = make_config(
        max_num_seqs=rng.randint(3, 10),
        max_num_batched_tokens=rng.choice([3, 8, 20, 64]),
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=-(-max_model_len // block_size) + rng.randint(0, 8),
        enable_prefix_caching=rng.random() < 0.8,
        prefill_slowdown=rng.choice([0.0, 0.0, 2.5]),
        long_prompt_tokens=8,
        speculation=Speculation(max_drafting_seqs=rng.randint(1, 10)) if rng.random() < 0.5 else None,
    )
    pieces = [[1], [2], [1, 2, 1, 2], [3] * 8]
    arrivals = []
    for index in range(rng.randint(6, 20)):
        prompt = [token for _ in range(rng.randint(1, 4)) for token in rng.choice(pieces)]
        request = make_request(
            str(index),
            prompt[: max_model_len - 1],
            max_tokens=rng.randint(1, 40),
            ignore_eos=rng.random() < 0.8,
            salt=rng.choice(["", "", "tenant"]),
            priority=rng.choice([0, 0, 0, -1, 1]),
            tenant=rng.choice(tenants),
        )
        step = rng.randint(0, 20)
        abort_step = step + rng.randint(0, 30) if rng.random() < 0.2 else None
        arrivals.append(Arrival(request, step, abort_step, rng.random() < 0.5))
    return Story(
        config,
        arrivals,
        lost_steps={rng.randint(0, 60) for _ in range(rng.choice([0, 0, 1, 2]))},
        depth=rng.choice([1, 2]),
        num_choices=rng.choice([1, 2, 3, VOCAB_SIZE]),
    )


@dataclass
class Outcome:
    """What a story ended with."""

    simulation: Simulation
    accepted: list[Arrival] = field(default_factory=list)
    refused: list[Arrival] = field(default_factory=list)
    aborted: set[str] = field(default_factory=set)


def tell(story: Story) -> Outcome:
    """Play a story to its end; everything is checked after every move."""
    simulation = Simulation(story.config, num_choices=story.num_choices)
    outcome = Outcome(simulation)
    last_event = max(max(arrival.step, arrival.abort_step or 0) for arrival in story.arrivals)
    step = 0
    while step <= last_event or simulation.has_work:
        assert step < 5000, "no end in sight"
        for arrival in story.arrivals:
            if arrival.step == step:
                _arrive(outcome, arrival)
        _abort(outcome, story, step, in_flight=False)
        simulation.launch(story.depth)
        _abort(outcome, story, step, in_flight=True)
        if simulation.in_flight and step in story.lost_steps:
            outcome.aborted.update(simulation.lose())
        elif simulation.in_flight:
            simulation.collect(seconds=0.01 + 0.001 * simulation.in_flight[0][0].num_tokens * (step % 3))
        step += 1
    return outcome


def _arrive(outcome: Outcome, arrival: Arrival) -> None:
    try:
        outcome.simulation.add(arrival.request)
        outcome.accepted.append(arrival)
    except ContextTooLong:
        outcome.refused.append(arrival)


def _abort(outcome: Outcome, story: Story, step: int, *, in_flight: bool) -> None:
    for arrival in story.arrivals:
        if arrival.abort_step == step and arrival.abort_in_flight == in_flight:
            name = arrival.request.request_id
            if outcome.simulation.abort(name):
                outcome.aborted.add(name)


def check_outcome(outcome: Outcome) -> None:
    """Every accepted request has exactly its tokens, and nothing is left behind."""
    simulation = outcome.simulation
    for arrival in outcome.accepted:
        name = arrival.request.request_id
        if name not in outcome.aborted:
            simulation.assert_output(arrival.request)
        else:
            assert name not in simulation.reasons
    for arrival in outcome.refused:
        prompt, limits = len(arrival.request.prompt_token_ids), simulation.config
        longest = min(prompt + arrival.request.sampling.max_tokens, limits.max_model_len)
        assert prompt >= limits.max_model_len or longest - 1 > limits.num_blocks * limits.block_size
    stats = simulation.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def check_story(story: Story) -> None:
    """The one property."""
    outcome = tell(story)
    check_outcome(outcome)
    stats = outcome.simulation.scheduler.stats()
    event(f"preempted: {stats.num_preemptions > 0}")
    event(f"prefix hits: {stats.prefix_cache_hits > 0}")
    event(f"aborted: {bool(outcome.aborted)}")
    event(f"drafts accepted: {stats.num_accepted_tokens > 0}")
    event(f"in flight: {story.depth}")


@given(stories())
@QUICK
def test_every_request_ends_with_exactly_its_own_tokens(story: Story) -> None:
    check_story(story)


@given(st.integers(0, 2**32).map(busy_story))
@QUICK
def test_every_request_of_a_crowd_ends_with_exactly_its_own_tokens(story: Story) -> None:
    check_story(story)


def test_the_crowded_stories_do_preempt_share_carry_and_guess() -> None:
    told = [tell(busy_story(seed)) for seed in range(40)]
    stats = [outcome.simulation.scheduler.stats() for outcome in told]
    assert sum(found.num_preemptions > 0 for found in stats) > 12
    assert sum(found.prefix_cache_hits > 0 for found in stats) > 12
    assert sum(found.num_accepted_tokens > 0 for found in stats) > 8
    assert sum(found.num_accepted_tokens < found.num_draft_tokens for found in stats) > 8
    batches = [batch for outcome in told for batch in outcome.simulation.batches]
    assert sum(item.carries for batch in batches for item in batch.scheduled) > 100


@pytest.mark.slow
@given(stories() | st.integers(0, 2**32).map(busy_story))
@THOROUGH
def test_every_request_ends_with_exactly_its_own_tokens_in_thousands_of_stories(story: Story) -> None:
    check_story(story)


@given(st.integers(0, 2**32).map(busy_story))
@settings(QUICK, max_examples=20)
def test_the_same_story_gives_the_same_batches_and_blocks(story: Story) -> None:
    def trace(outcome: Outcome) -> list[object]:
        return [
            ([(s.sequence.request_id, s.start, s.num_new_tokens) for s in batch.scheduled], batch.preempted)
            for batch in outcome.simulation.batches
        ]

    assert trace(tell(story)) == trace(tell(story))


def crowded(config: SchedulerConfig, num_requests: int) -> Simulation:
    """Many long sequences in a pool that holds a few of them."""
    simulation = Simulation(config)
    requests = [
        make_request(str(index), [index % 3] * 5 + [index], max_tokens=40) for index in range(num_requests)
    ]
    for request in requests:
        simulation.add(request)
    simulation.run()
    for request in requests:
        simulation.assert_output(request)
    return simulation


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_a_crowd_much_larger_than_the_pool_gets_through_without_thrashing(
    enable_prefix_caching: bool,
) -> None:
    config = make_config(
        num_blocks=30,
        max_num_seqs=16,
        max_num_batched_tokens=32,
        enable_prefix_caching=enable_prefix_caching,
    )
    simulation = crowded(config, 40)
    computed = sum(batch.num_tokens for batch in simulation.batches)
    assert simulation.scheduler.stats().num_preemptions > 0
    assert computed < 1.8 * 40 * 45, "most of the work was done twice"


def test_first_come_is_first_to_get_a_first_token_when_all_are_alike() -> None:
    simulation = crowded(make_config(num_blocks=30, max_num_seqs=16, max_num_batched_tokens=32), 40)
    assert list(simulation.outputs) == [str(index) for index in range(40)]
