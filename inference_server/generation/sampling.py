"""Merges what a client set with the model's defaults, and checks that prompt and answer fit. Pure."""

from __future__ import annotations

from typing import TypeVar

from inference_server.config.catalog import SamplingDefaults
from inference_server.errors import ContextTooLong, InvalidRequest
from inference_server.generation.requests import SamplingOptions
from inference_server.types import SamplingParams

T = TypeVar("T")
GREEDY_BELOW = 1e-5  # a smaller temperature would only overflow; it means greedy


def resolve_sampling(
    options: SamplingOptions,
    defaults: SamplingDefaults,
    *,
    num_prompt_tokens: int,
    max_model_len: int,
    prompt_param: str = "messages",
) -> SamplingParams:
    """The parameters that the worker gets.

    What the client asked for must fit the context; what it left open is cut to fit. `prompt_param` is what
    errors call the prompt.

    Raises:
        ContextTooLong: the prompt, or prompt and `max_tokens` together, exceed the context.
        InvalidRequest: the prompt is empty, or `min_tokens` exceeds `max_tokens`.
    """
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt is empty", param=prompt_param)
    max_tokens = _max_tokens(options, defaults, num_prompt_tokens, max_model_len, prompt_param)
    if options.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {options.min_tokens}, which exceeds max_tokens ({max_tokens})", param="min_tokens"
        )
    temperature = _first(options.temperature, defaults.temperature, 1.0)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=options.min_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=_first(options.top_p, defaults.top_p, 1.0),
        top_k=max(0, _first(options.top_k, defaults.top_k, 0)),
        min_p=_first(options.min_p, defaults.min_p, 0.0),
        seed=options.seed,
        presence_penalty=_first(options.presence_penalty, defaults.presence_penalty, 0.0),
        frequency_penalty=_first(options.frequency_penalty, defaults.frequency_penalty, 0.0),
        repetition_penalty=_first(options.repetition_penalty, defaults.repetition_penalty, 1.0),
        stop_token_ids=options.stop_token_ids,
        ignore_eos=options.ignore_eos,
    )


def _max_tokens(
    options: SamplingOptions,
    defaults: SamplingDefaults,
    num_prompt_tokens: int,
    max_model_len: int,
    prompt_param: str,
) -> int:
    room = max_model_len - num_prompt_tokens
    wanted = options.max_tokens
    if room < 1 or (wanted is not None and wanted > room):
        answer = "" if wanted is None else f" and {wanted} tokens of answer"
        raise ContextTooLong(
            f"this model's maximum context length is {max_model_len} tokens; the request has "
            f"{num_prompt_tokens} tokens of prompt{answer}. Shorten the prompt or lower max_tokens.",
            param=prompt_param if room < 1 else "max_tokens",
        )
    return min(room, _first(wanted, defaults.max_tokens, _first(options.fallback_max_tokens, None, room)))


def _first(wanted: T | None, default: T | None, otherwise: T) -> T:
    if wanted is not None:
        return wanted
    return otherwise if default is None else default
