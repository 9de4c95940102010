"""The client's wish, then the model's default, then the server's; and the context's limit over all."""

from __future__ import annotations

import pytest

from inference_server.config.catalog import SamplingDefaults
from inference_server.errors import ContextTooLong, InvalidRequest
from inference_server.generation.requests import SamplingOptions
from inference_server.generation.sampling import resolve_sampling


def test_the_clients_wish_wins_over_the_models_default() -> None:
    sampling = resolve_sampling(
        SamplingOptions(temperature=0.0),
        SamplingDefaults(temperature=0.7, top_k=5),
        num_prompt_tokens=10,
        max_model_len=100,
    )
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 5, 1.0)


@pytest.mark.parametrize(
    ("wanted", "default", "given"), [(None, None, 90), (None, 20, 20), (None, 500, 90), (7, 20, 7)]
)
def test_an_answer_may_fill_the_context_and_no_more(
    wanted: int | None, default: int | None, given: int
) -> None:
    sampling = resolve_sampling(
        SamplingOptions(max_tokens=wanted),
        SamplingDefaults(max_tokens=default),
        num_prompt_tokens=10,
        max_model_len=100,
    )
    assert sampling.max_tokens == given


@pytest.mark.parametrize(("num_prompt", "wanted"), [(100, None), (101, None), (10, 91)])
def test_what_cannot_fit_is_refused_with_the_numbers(num_prompt: int, wanted: int | None) -> None:
    with pytest.raises(ContextTooLong, match="100 tokens"):
        resolve_sampling(
            SamplingOptions(max_tokens=wanted),
            SamplingDefaults(),
            num_prompt_tokens=num_prompt,
            max_model_len=100,
        )


def test_an_empty_prompt_and_a_minimum_above_the_maximum_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        resolve_sampling(SamplingOptions(), SamplingDefaults(), num_prompt_tokens=0, max_model_len=9)
    with pytest.raises(InvalidRequest, match="min_tokens"):
        resolve_sampling(
            SamplingOptions(max_tokens=2, min_tokens=3),
            SamplingDefaults(),
            num_prompt_tokens=1,
            max_model_len=9,
        )
