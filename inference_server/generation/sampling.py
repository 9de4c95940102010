"""Merges what a client set with the model's defaults, and checks that it fits the model. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from inference_server.config.catalog import SamplingDefaults
from inference_server.errors import ContextTooLong, InvalidRequest
from inference_server.generation.requests import SamplingOptions, TextRequest
from inference_server.types import SamplingParams

T = TypeVar("T")
_SEEDS = 2**64
MAX_PROMPT_SCORES = 524_288  # some 60 MB of memory and 30 MB of JSON
GREEDY_BELOW = 1e-5  # a smaller temperature would only overflow; it means greedy


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model allows a request. `max_model_len`: tokens of prompt and output together."""

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]


def scored_options(request: TextRequest) -> SamplingOptions:
    """The options, with the scores that other wishes need.

    An echoed prompt is told with the same log-probabilities as the answer, and the likeliest of several
    answers is known by its tokens' own.
    """
    options = request.sampling
    if request.echo and options.logprobs is not None:
        wanted = max(options.logprobs, options.prompt_logprobs or 0)
        options = msgspec.structs.replace(options, prompt_logprobs=wanted)
    if request.num_candidates > request.num_answers and options.logprobs is None:
        options = msgspec.structs.replace(options, logprobs=0)
    return options


def check_prompt_scores(request: TextRequest, num_prompt_tokens: int) -> None:
    """Whether all scores of the prompts' tokens fit into an answer.

    Raises:
        InvalidRequest: they do not.
    """
    num_top = scored_options(request).prompt_logprobs
    if num_top is None:
        return
    num_scores = num_prompt_tokens * (num_top + 1) * request.num_answers
    if num_scores > MAX_PROMPT_SCORES:
        name = "logprobs" if request.sampling.prompt_logprobs is None else "prompt_logprobs"
        raise InvalidRequest(
            f"{name}: {num_prompt_tokens} tokens of prompt with {num_top + 1} log-probabilities each are too "
            f"many; the limit is {MAX_PROMPT_SCORES} per request, each answer counted. Send fewer prompts at "
            "once, or ask for fewer log-probabilities.",
            param=name,
        )


def candidate_sampling(sampling: SamplingParams, number: int) -> SamplingParams:
    """The parameters of the answer with this number, from 0, to one prompt.

    Each has a seed of its own: the request's plus its number. The first alone brings the prompt's scores.
    """
    if number == 0 or (sampling.seed is None and sampling.prompt_logprobs is None):
        return sampling
    seed = None if sampling.seed is None else (sampling.seed + number) % _SEEDS
    return msgspec.structs.replace(sampling, seed=seed, prompt_logprobs=None)


def resolve_sampling(
    options: SamplingOptions,
    defaults: SamplingDefaults,
    *,
    num_prompt_tokens: int,
    limits: ModelLimits,
    prompt_param: str = "messages",
) -> SamplingParams:
    """The parameters that the worker gets.

    What the client asked for must fit the context; what it left open is cut to fit. `prompt_param` is what
    errors call the prompt.

    Raises:
        ContextTooLong: the prompt, or prompt and `max_tokens` together, exceed the context.
        InvalidRequest: the prompt is empty, `min_tokens` exceeds `max_tokens`, a token id is none of the
            model's, or no token is left to choose.
    """
    if num_prompt_tokens == 0:
        raise InvalidRequest("the prompt is empty", param=prompt_param)
    _check_token_ids(options, limits)
    _check_grammar(options)
    max_tokens = _max_tokens(options, defaults, num_prompt_tokens, limits.max_model_len, prompt_param)
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
        logit_bias=options.logit_bias,
        allowed_token_ids=options.allowed_token_ids,
        logprobs=options.logprobs,
        prompt_logprobs=options.prompt_logprobs,
        grammar=options.grammar,
    )


def _check_token_ids(options: SamplingOptions, limits: ModelLimits) -> None:
    named = (
        ("logit_bias", [token for token, _ in options.logit_bias]),
        ("allowed_token_ids", options.allowed_token_ids),
    )
    for name, token_ids in named:
        if token_ids and max(token_ids) >= limits.vocab_size:
            raise InvalidRequest(
                f"{name}: token {max(token_ids)} is none of this model's, which has ids 0 to "
                f"{limits.vocab_size - 1}",
                param=name,
            )
    ends = limits.eos_token_ids | set(options.stop_token_ids)
    if options.min_tokens and options.allowed_token_ids and ends.issuperset(options.allowed_token_ids):
        raise InvalidRequest(
            "allowed_token_ids are all end or stop tokens, and min_tokens forbids these at first; allow "
            "another token, or leave out min_tokens",
            param="allowed_token_ids",
        )


def _check_grammar(options: SamplingOptions) -> None:
    """A grammar says which tokens may come and when the answer may end; nothing else may say so, too."""
    if options.grammar is None:
        return
    named = {
        "ignore_eos": options.ignore_eos,
        "min_tokens": options.min_tokens,
        "allowed_token_ids": options.allowed_token_ids,
    }
    for name, value in named.items():
        if value:
            raise InvalidRequest(f"{name} contradicts {options.grammar.param}; leave out one", param=name)


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
