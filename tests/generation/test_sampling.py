"""What the client set, what the model's entry says, and what fits."""

from __future__ import annotations

from typing import Any

import pytest

from inference_server.config.catalog import SamplingDefaults
from inference_server.errors import ContextTooLong, InvalidRequest
from inference_server.generation.requests import SamplingOptions, TextRequest
from inference_server.generation.sampling import ModelLimits, check_prompt_scores, resolve_sampling
from inference_server.types import SamplingParams


def resolved(
    options: SamplingOptions, defaults: SamplingDefaults | None = None, num_prompt_tokens: int = 10
) -> SamplingParams:
    return resolve_sampling(
        options,
        defaults or SamplingDefaults(),
        num_prompt_tokens=num_prompt_tokens,
        limits=ModelLimits(max_model_len=100, vocab_size=50, eos_token_ids=frozenset({2})),
        prompt_param="prompt",
    )


def test_the_client_wins_over_the_entry_and_the_entry_over_the_server() -> None:
    defaults = SamplingDefaults(temperature=0.5, top_p=0.9, max_tokens=7)
    sampling = resolved(SamplingOptions(temperature=0.2), defaults)
    assert (sampling.temperature, sampling.top_p, sampling.min_p, sampling.max_tokens) == (0.2, 0.9, 0.0, 7)


def test_without_any_limit_the_answer_may_fill_the_context() -> None:
    assert resolved(SamplingOptions()).max_tokens == 90


def test_a_default_limit_is_cut_to_fit_but_a_wanted_one_is_not() -> None:
    assert resolved(SamplingOptions(fallback_max_tokens=16), num_prompt_tokens=95).max_tokens == 5
    assert resolved(SamplingOptions(), SamplingDefaults(max_tokens=500)).max_tokens == 90
    with pytest.raises(ContextTooLong, match="100 tokens") as caught:
        resolved(SamplingOptions(max_tokens=91))
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "num_tokens", "param"),
    [
        ({"sampling": SamplingOptions(prompt_logprobs=20)}, 24_966, "prompt_logprobs"),
        ({"sampling": SamplingOptions(prompt_logprobs=1), "num_answers": 8}, 32_768, "prompt_logprobs"),
        ({"sampling": SamplingOptions(logprobs=1), "echo": True}, 262_144, "logprobs"),
        ({"sampling": SamplingOptions(logprobs=20)}, 10**6, None),
    ],
    ids=["prompt_logprobs", "several answers", "echo", "of answers only"],
)
def test_scores_of_prompts_are_bounded(fields: dict[str, Any], num_tokens: int, param: str | None) -> None:
    request = TextRequest(request_id="r", model="m", prompts=(), **fields)
    check_prompt_scores(request, num_tokens)
    if param is None:
        return
    with pytest.raises(InvalidRequest, match="the limit is 524288") as caught:
        check_prompt_scores(request, num_tokens + 1)
    assert caught.value.param == param


def test_a_prompt_as_long_as_the_context_is_too_long() -> None:
    assert resolved(SamplingOptions(), num_prompt_tokens=99).max_tokens == 1
    with pytest.raises(ContextTooLong) as caught:
        resolved(SamplingOptions(), num_prompt_tokens=100)
    assert caught.value.param == "prompt"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        resolved(SamplingOptions(), num_prompt_tokens=0)


def test_min_tokens_beyond_max_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolved(SamplingOptions(max_tokens=5, min_tokens=6))
    assert caught.value.param == "min_tokens"


def test_a_tiny_temperature_is_greedy_and_a_negative_top_k_is_off() -> None:
    sampling = resolved(SamplingOptions(temperature=1e-30, top_k=-1))
    assert (sampling.temperature, sampling.top_k) == (0.0, 0)
