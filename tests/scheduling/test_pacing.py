"""What a long prompt does to those who are being answered, and what protecting them costs."""

from __future__ import annotations

import math
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.pacing import MAX_ASKED_BETWEEN_QUIET, MAX_STRETCH, PrefillPacer
from tests.scheduling.timing import Costs, TimedRun, closed_loop

STREAMS = {f"s{index}" for index in range(8)}


def config(slowdown: float, **changes: int) -> SchedulerConfig:
    limits = {
        "max_num_seqs": 64,
        "max_num_batched_tokens": 512,
        "max_model_len": 8192,
        "num_blocks": 4096,
    }
    return SchedulerConfig(**(limits | changes), prefill_slowdown=slowdown)  # type: ignore[arg-type]


def long_prompt_beside_streams(run: TimedRun, num_tokens: int = 4000) -> tuple[float, list[float], float]:
    """(quiet p50, gaps while the prompt is computed, its time to first token), in seconds."""
    for name in sorted(STREAMS):
        run.add(name, 100, 2000)
    while len(run.first_s) < len(STREAMS):
        run.step()
    for _ in range(50):
        run.step()
    arrival_s = run.now_s
    quiet_s = median(run.gaps_between(arrival_s - 40 * run.costs.of_quiet(8), arrival_s, STREAMS))
    run.add("long", num_tokens, 10)
    run.run_until("long")
    return quiet_s, run.gaps_between(arrival_s, run.now_s, STREAMS), run.now_s - arrival_s


def p99(values: list[float]) -> float:
    return values[math.ceil(0.99 * len(values)) - 1]


GPU = Costs(step_s=0.008, decode_s=0.00002, prompt_token_s=0.00003)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("costs", "cap"),
    [
        pytest.param(Costs(), 512, id="cpu"),
        pytest.param(Costs(noise=0.15), 512, id="noisy cpu"),
        pytest.param(Costs(prompt_token_s=0.001), 2048, id="slow prefill"),
        pytest.param(Costs(depth_s=0.36e-6), 512, id="cpu with attention"),
        pytest.param(GPU, 8192, id="gpu"),
    ],
)
def test_a_4000_token_prompt_keeps_the_gaps_of_8_streams_within_3_times_their_quiet_length(
    costs: Costs, cap: int, depth: int
) -> None:
    paced = TimedRun(config(2.5, max_num_batched_tokens=cap), costs, depth)
    quiet_s, gaps, _ = long_prompt_beside_streams(paced)
    assert p99(gaps) <= 3 * quiet_s
    unpaced = TimedRun(config(0.0, max_num_batched_tokens=cap), costs, depth)
    quiet_s, gaps, _ = long_prompt_beside_streams(unpaced)
    assert p99(gaps) > 8 * quiet_s


def test_the_long_prompt_itself_waits_at_most_twice_as_long_for_its_first_token() -> None:
    _, _, paced_s = long_prompt_beside_streams(TimedRun(config(2.5)))
    _, _, unpaced_s = long_prompt_beside_streams(TimedRun(config(0.0)))
    assert paced_s < 2 * unpaced_s


def test_where_small_pieces_are_dear_the_long_prompt_is_not_cut_into_ever_smaller_ones() -> None:
    costs = Costs(prompt_s=0.05)
    _, _, paced_s = long_prompt_beside_streams(TimedRun(config(2.5), costs))
    _, _, unpaced_s = long_prompt_beside_streams(TimedRun(config(0.0), costs))
    assert paced_s < 1.1 * MAX_STRETCH * unpaced_s


def test_a_long_prompt_alone_takes_whole_steps() -> None:
    run = TimedRun(config(2.5))
    run.add("long", 4000, 3)
    run.run_until("long")
    assert run.now_s == pytest.approx(8 * 0.007 + 4000 * 0.0005, rel=0.01)


def test_a_short_prompt_is_computed_in_one_step_beside_streams() -> None:
    run = TimedRun(config(2.5))
    for name in sorted(STREAMS):
        run.add(name, 100, 500)
    while len(run.first_s) < len(STREAMS):
        run.step()
    arrival_s = run.now_s
    run.add("short", 150, 5)
    run.run_until("short")
    assert run.now_s - arrival_s == pytest.approx(run.costs.of_quiet(8) + 150 * 0.0005)


@pytest.mark.parametrize("num_streams", [16, 32])
def test_with_short_prompts_a_busy_server_is_as_fast_as_without_pacing(num_streams: int) -> None:
    speeds = [
        closed_loop(
            TimedRun(config(slowdown)), num_streams=num_streams, num_requests=96, prompt=150, output=64
        )
        for slowdown in (0.0, 2.5)
    ]
    assert speeds[1] == pytest.approx(speeds[0])


@pytest.mark.parametrize("num_streams", [4, 16, 32])
def test_with_long_prompts_only_a_busy_server_loses_little(num_streams: int) -> None:
    speeds = [
        closed_loop(
            TimedRun(config(slowdown)), num_streams=num_streams, num_requests=96, prompt=1000, output=64
        )
        for slowdown in (0.0, 2.5)
    ]
    assert speeds[1] > 0.85 * speeds[0]


@pytest.mark.parametrize("first_step_s", [0.0001, 2.0])
def test_a_first_step_that_is_not_like_the_others_is_soon_forgotten(first_step_s: float) -> None:
    pacer = PrefillPacer(slowdown=2.5, min_tokens=16, max_tokens=512)
    pacer.observe(num_decodes=0, num_prompt_tokens=100, seconds=0.05)
    pacer.observe(num_decodes=8, num_prompt_tokens=0, seconds=first_step_s)
    for _ in range(100):
        pacer.observe(num_decodes=8, num_prompt_tokens=0, seconds=0.015)
    allowed = 0
    for _ in range(10):
        allowed = pacer.allowance(num_decodes=8, num_prefilling=1, may_rest=False)
        pacer.observe(num_decodes=8, num_prompt_tokens=allowed, seconds=0.015 + 0.0005 * allowed)
    assert allowed == pytest.approx(45, abs=1)


def test_the_allowance_grows_when_more_wait_than_decode() -> None:
    pacer = PrefillPacer(slowdown=2.0, min_tokens=16, max_tokens=512)
    pacer.observe(num_decodes=2, num_prompt_tokens=0, seconds=0.01)
    for _ in range(20):
        pacer.observe(num_decodes=2, num_prompt_tokens=200, seconds=0.01 + 200 * 0.0001)

    def allowed(num_prefilling: int) -> int:
        return pacer.allowance(num_decodes=2, num_prefilling=num_prefilling, may_rest=False)

    assert [allowed(number) for number in (1, 2, 4)] == pytest.approx([100, 100, 300], abs=1)


def test_the_quiet_time_is_measured_first_and_then_now_and_again_if_the_step_may_do_without() -> None:
    pacer = PrefillPacer(slowdown=2.5, min_tokens=16, max_tokens=512)

    def ask(may_rest: bool = True) -> int:
        return pacer.allowance(num_decodes=8, num_prefilling=1, may_rest=may_rest)

    assert ask() == 0
    pacer.observe(num_decodes=8, num_prompt_tokens=0, seconds=0.01)
    answers = [ask() for _ in range(2 * MAX_ASKED_BETWEEN_QUIET + 1)]
    assert [index for index, answer in enumerate(answers) if not answer] == [
        MAX_ASKED_BETWEEN_QUIET,
        2 * MAX_ASKED_BETWEEN_QUIET,
    ]
    other = PrefillPacer(slowdown=2.5, min_tokens=16, max_tokens=512)
    assert other.allowance(num_decodes=1, num_prefilling=1, may_rest=False) == 16


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 512), st.floats(0, 10)), max_size=60),
    st.floats(0, 20),
)
@settings(deadline=None)
def test_whatever_was_measured_the_prompt_advances_within_the_cap(
    steps: list[tuple[int, int, float]], slowdown: float
) -> None:
    pacer = PrefillPacer(slowdown=slowdown, min_tokens=16, max_tokens=512)
    for num_decodes, num_prompt_tokens, seconds in steps:
        if num_decodes or num_prompt_tokens:
            pacer.observe(num_decodes=num_decodes, num_prompt_tokens=num_prompt_tokens, seconds=seconds)
        allowed = [
            pacer.allowance(num_decodes=num_decodes, num_prefilling=1, may_rest=may_rest)
            for may_rest in (True, False)
        ]
        assert 16 <= allowed[1] <= 512
        assert allowed[0] == 0 or 16 <= allowed[0] <= 512
