"""Log-probabilities are the model's own, whatever batch, chunks, cache or guesses they come from."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_server.engine.text_engine import TextEngine
from inference_server.types import GenerationRequest, SamplingParams, Speculation, TokenDelta, TokenScore
from tests.engine.reference import build_engine as engine_over
from tests.engine.reference import reference_model, run_to_end, tokens_of
from tests.engine.tiny_models import VOCAB_SIZE

NUM_TOP = 4
TOLERANCE = 2e-4
BuildEngine = Callable[..., TextEngine]


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    return reference_model(tiny_model)


@pytest.fixture
def build_engine(kernels_and_model: tuple[str, Path]) -> BuildEngine:
    """An engine over the fixture's model, with the fixture's kernels."""
    kernels, folder = kernels_and_model
    return functools.partial(engine_over, folder, kernels=kernels)


def scored_requests(count: int, seed: int, **changes: Any) -> dict[str, GenerationRequest]:
    """Requests with scores of both kinds, greedy and drawn, with options that change the choice."""
    rng = random.Random(seed)
    requests = {}
    for number in range(count):
        settings: dict[str, Any] = {
            "max_tokens": 8,
            "temperature": rng.choice([0.0, 1.0]),
            "repetition_penalty": rng.choice([1.0, 1.3]),
            "logit_bias": rng.choice([(), ((5, 3.0),)]),
            "seed": number,
            "ignore_eos": True,
            "logprobs": NUM_TOP,
            "prompt_logprobs": rng.choice([None, 0, NUM_TOP]),
        }
        prompt = tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 40)))
        sampling = SamplingParams(**(settings | changes))
        requests[f"r{number}"] = GenerationRequest(
            request_id=f"r{number}", prompt_token_ids=prompt, sampling=sampling
        )
    return requests


def run(engine: TextEngine, requests: dict[str, GenerationRequest]) -> dict[str, list[TokenDelta]]:
    for request in requests.values():
        engine.submit(request)
    return run_to_end(engine)


@torch.inference_mode()
def true_logprobs(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """Row n: log-probabilities of the token after the first n + 1."""
    logits = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0]
    return logits.double().log_softmax(dim=-1)


def assert_true(score: TokenScore, truth: torch.Tensor, token: int, num_top: int) -> None:
    """`score` is what the row of the reference says."""
    assert score.logprob == pytest.approx(float(truth[token]), abs=TOLERANCE)
    assert abs(int((truth > truth[token] + TOLERANCE).sum()) + 1 - score.rank) <= int(
        ((truth - truth[token]).abs() <= TOLERANCE).sum()
    )
    assert len(score.top) == num_top
    values = truth.topk(max(1, num_top)).values[:num_top].tolist()
    assert [logprob for _, logprob in score.top] == pytest.approx(values, abs=TOLERANCE)
    for token_id, logprob in score.top:
        assert logprob == pytest.approx(float(truth[token_id]), abs=TOLERANCE)


def assert_scores(
    model: Any, requests: dict[str, GenerationRequest], found: dict[str, list[TokenDelta]]
) -> None:
    """Every score that was asked for is there, once, in order, and right."""
    for name, request in requests.items():
        prompt, output = request.prompt_token_ids, tokens_of(found[name])
        truth = true_logprobs(model, [*prompt, *output])
        scores = [score for delta in found[name] for score in delta.scores]
        for number, (token, score) in enumerate(zip(output, scores, strict=True)):
            assert_true(score, truth[len(prompt) - 1 + number], token, NUM_TOP)
        wanted = request.sampling.prompt_logprobs
        prompt_scores = [score for delta in found[name] for score in delta.prompt_scores]
        expected = [] if wanted is None else prompt[1:]
        for number, (token, score) in enumerate(zip(expected, prompt_scores, strict=True)):
            assert_true(score, truth[number], token, wanted or 0)


def test_scores_of_a_ragged_batch_are_the_models_own(build_engine: BuildEngine, reference: Any) -> None:
    requests = scored_requests(12, seed=1)
    assert_scores(reference, requests, run(build_engine(), requests))


def test_scores_of_chunked_and_preempted_sequences_are_the_models_own(
    build_engine: BuildEngine, reference: Any
) -> None:
    requests = scored_requests(8, seed=3, max_tokens=24)
    engine = build_engine(max_num_batched_tokens=24, kv_cache_tokens=112, max_model_len=96)
    found = run(engine, requests)
    assert engine.step_stats().num_preemptions > 0
    assert_scores(reference, requests, found)


def test_a_known_prefix_is_computed_again_where_its_scores_are_wanted(
    build_engine: BuildEngine, reference: Any
) -> None:
    engine = build_engine()
    requests = scored_requests(3, seed=5, prompt_logprobs=2)
    assert_scores(reference, requests, run(engine, requests))
    assert_scores(reference, requests, run(engine, requests))
    assert engine.step_stats().prefix_cache_hits == 0


def test_scores_under_guesses_are_those_without(tiny_llama: Path) -> None:
    requests = {
        name: GenerationRequest(
            request_id=name,
            prompt_token_ids=(5, 9, 5, 9, 5, 9, 5, 9, 11 + number),
            sampling=SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, logprobs=2),
        )
        for number, name in enumerate(("a", "b"))
    }
    plain = run(engine_over(tiny_llama), requests)
    engine = engine_over(tiny_llama, speculation=Speculation())
    guessed = run(engine, requests)
    assert engine.step_stats().num_accepted_tokens > 0
    for name in requests:
        assert tokens_of(guessed[name]) == tokens_of(plain[name])
        pairs = zip(
            [score for delta in guessed[name] for score in delta.scores],
            [score for delta in plain[name] for score in delta.scores],
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=TOLERANCE)
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


def test_a_step_never_has_more_rows_of_logits_than_sequences_may_run(tiny_llama: Path) -> None:
    engine = engine_over(tiny_llama, max_num_seqs=4)
    requests = scored_requests(4, seed=9, prompt_logprobs=0, max_tokens=3)
    for request in requests.values():
        engine.submit(request)
    num_rows = []
    while engine.has_work:
        outcome = engine.step()
        num_rows.append(sum(len(delta.prompt_scores) for delta in outcome.deltas))
    assert max(num_rows) <= 4
    assert sum(num_rows) == sum(len(request.prompt_token_ids) - 1 for request in requests.values())


def test_who_asks_for_nothing_gets_nothing(tiny_llama: Path) -> None:
    request = GenerationRequest(
        request_id="r", prompt_token_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=3, temperature=0.0)
    )
    for delta in run(engine_over(tiny_llama), {"r": request})["r"]:
        assert (delta.scores, delta.prompt_scores) == ((), ())
