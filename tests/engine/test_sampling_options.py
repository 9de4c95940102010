"""What options do to the choice of tokens, through the whole engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_server.engine.text_engine import TextEngine
from inference_server.types import GenerationRequest, SamplingParams, Speculation
from tests.engine.reference import build_engine, reference_model, run_to_end, tokens_of
from tests.engine.test_logprobs import scored_requests
from tests.engine.tiny_models import VOCAB_SIZE

PROMPT = (5, 9, 33, 71)
EOS = 2


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TextEngine:
    return build_engine(tiny_llama)


def generate(engine: TextEngine, prompt: Sequence[int] = PROMPT, **settings: Any) -> list[int]:
    options = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True} | settings
    engine.submit(
        GenerationRequest(
            request_id="r", prompt_token_ids=tuple(prompt), sampling=SamplingParams(**options)
        )
    )  # fmt: skip
    return tokens_of(run_to_end(engine)["r"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20), st.sampled_from([0.0, 1.0]))
def test_a_bias_of_minus_100_bans_tokens(engine: TextEngine, banned: set[int], temperature: float) -> None:
    bias = tuple((token, -100.0) for token in banned)
    assert banned.isdisjoint(generate(engine, logit_bias=bias, temperature=temperature, seed=3))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, VOCAB_SIZE - 1), st.sampled_from([0.0, 1.0]))
def test_a_bias_of_100_leaves_no_other_choice(engine: TextEngine, token: int, temperature: float) -> None:
    assert generate(engine, logit_bias=((token, 100.0),), temperature=temperature, seed=3) == [token] * 12


def test_a_bias_adds_to_the_logit(tiny_llama: Path, engine: TextEngine) -> None:
    logits = first_logits(tiny_llama)
    best, second = logits.topk(2).indices.tolist()
    gap = float(logits[best] - logits[second])
    assert generate(engine, max_tokens=1, logit_bias=((second, gap - 0.01),)) == [best]
    assert generate(engine, max_tokens=1, logit_bias=((second, gap + 0.01),)) == [second]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20), st.sampled_from([0.0, 1.0]))
def test_only_allowed_tokens_are_chosen(engine: TextEngine, allowed: set[int], temperature: float) -> None:
    output = generate(engine, allowed_token_ids=tuple(allowed), temperature=temperature, seed=3)
    assert allowed.issuperset(output)


def test_the_likeliest_allowed_token_is_chosen(tiny_llama: Path, engine: TextEngine) -> None:
    allowed = (7, 50, 100, 120)
    logits = first_logits(tiny_llama)
    best = max(allowed, key=lambda token: float(logits[token]))
    assert generate(engine, max_tokens=1, allowed_token_ids=allowed) == [best]


def test_min_tokens_holds_back_the_end_also_among_allowed_tokens(engine: TextEngine) -> None:
    output = generate(
        engine, allowed_token_ids=(EOS, 9), logit_bias=((EOS, 100.0),), min_tokens=3, ignore_eos=False
    )
    assert output == [9, 9, 9, EOS]


def test_scores_do_not_see_what_options_do_to_the_choice(engine: TextEngine) -> None:
    sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=3)
    biased = SamplingParams(max_tokens=1, temperature=0.0, logprobs=3, logit_bias=((7, 100.0),))
    scores = {}
    for name, params in (("plain", sampling), ("biased", biased)):
        engine.submit(GenerationRequest(request_id=name, prompt_token_ids=PROMPT, sampling=params))
        (delta,) = run_to_end(engine)[name]
        scores[name] = delta.scores[0]
    assert scores["plain"].top == scores["biased"].top
    assert scores["plain"].rank == 1 < scores["biased"].rank


def test_log_probabilities_of_all_tokens_sum_to_one(engine: TextEngine) -> None:
    sampling = SamplingParams(max_tokens=3, temperature=0.0, logprobs=VOCAB_SIZE, ignore_eos=True)
    engine.submit(GenerationRequest(request_id="r", prompt_token_ids=PROMPT, sampling=sampling))
    scores = [score for delta in run_to_end(engine)["r"] for score in delta.scores]
    for score in scores:
        assert sum(math.exp(logprob) for _, logprob in score.top) == pytest.approx(1.0, abs=1e-5)
        assert len({token for token, _ in score.top}) == VOCAB_SIZE


def test_several_answers_compute_their_common_prompt_once(tiny_llama: Path) -> None:
    engine = build_engine(tiny_llama)
    prompt = tuple(3 + n % 100 for n in range(100))
    for number in range(8):
        sampling = SamplingParams(max_tokens=4, seed=number, ignore_eos=True)
        engine.submit(GenerationRequest(request_id=f"r-{number}", prompt_token_ids=prompt, sampling=sampling))
    num_tokens = 0
    while engine.has_work:
        num_tokens += engine.step().stats.step_num_tokens
    tail = 100 - 96  # what is beyond the last full block
    assert num_tokens == 100 + 7 * tail + 8 * 3
    assert engine.step_stats().prefix_cache_hits == 7 * 96


def test_guesses_change_no_option(tiny_llama: Path) -> None:
    """Biases, allowed tokens, minimum lengths, scores and seeds give the same with speculation."""
    requests = {
        name: GenerationRequest(
            request_id=name,
            prompt_token_ids=(5, 9, 5, 9, 5, 9, 5, 9, *request.prompt_token_ids[:6], 5, 9),
            sampling=request.sampling,
        )
        for name, request in scored_requests(
            4, seed=2, max_tokens=30, allowed_token_ids=(5, 9, 11), min_tokens=4, prompt_logprobs=None
        ).items()
    }
    outputs = []
    for speculation in (None, Speculation()):
        engine = build_engine(tiny_llama, speculation=speculation)
        for request in requests.values():
            engine.submit(request)
        outputs.append({name: tokens_of(deltas) for name, deltas in run_to_end(engine).items()})
    assert engine.step_stats().num_accepted_tokens > 0
    assert outputs[0] == outputs[1]


@torch.inference_mode()
def first_logits(folder: Path) -> torch.Tensor:
    logits: torch.Tensor = reference_model(folder)(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    return logits
