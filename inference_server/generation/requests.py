"""What the API asks of the generation service, and what it gets back. Frozen values; no JSON, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from inference_server.access.gate import Caller
from inference_server.generation.scores import ScoredToken
from inference_server.generation.tools import ToolUse
from inference_server.tracing.timeline import Timeline
from inference_server.types import FinishReason, GrammarSpec


class ChatPrompt(msgspec.Struct, frozen=True):
    """A conversation for the model's chat template.

    With `continue_final_message` the prompt ends inside the last message, for the model to go on with it.
    `tools` are told to the model, by a template that knows none in plain words.
    `variables` are more that the template may look at: names that the API allows, and plain values. A
    template writes the special tokens itself; `add_special_tokens` adds those of a plain text as well.
    """

    messages: tuple[Mapping[str, Any], ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = {}
    tools: tuple[Mapping[str, Any], ...] = ()
    add_special_tokens: bool = False


class TextPrompt(msgspec.Struct, frozen=True):
    """Plain text. `add_special_tokens`: with those that the tokenizer puts around a text."""

    text: str
    add_special_tokens: bool = True


class TokenPrompt(msgspec.Struct, frozen=True):
    """Token ids, taken as they are."""

    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the client set, each value in range; None means the model's default, or else the server's.

    `fallback_max_tokens` is the server's default for `max_tokens`; None is up to the context limit.
    """

    max_tokens: int | None = None
    fallback_max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None


class TextRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`num_answers` answers per prompt are wanted. `request_id` is the server's own, unique in it.

    With `best_of`, so many are generated for each prompt and the likeliest `num_answers` are given. `echo`
    puts the prompt before each answer; with `echo_only` nothing comes after it. `include_stop`: what ended an
    answer is part of it; `scores_end`: the token that ends one is scored, though it is no text. `timeout_s`
    is counted from the moment the service takes the request; it can only shorten the server's.
    `keep_alive_s` is how long the model stays afterwards: below 0 for ever, None as its entry says.
    `tool_use` is how calls are found in the answers, `caller` whoever asks, if keys are asked for, `timeline`
    where what becomes of the request is written down.
    """

    request_id: str
    model: str
    prompts: tuple[Prompt, ...]
    sampling: SamplingOptions = SamplingOptions()
    num_answers: int = 1
    best_of: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    scores_end: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    echo_only: bool = False
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None
    keep_alive_s: float | None = None
    tool_use: ToolUse | None = None
    caller: Caller | None = None
    timeline: Timeline | None = None

    @property
    def tenant(self) -> str:
        """Whose share of a model this takes; "" where nobody shares it."""
        return "" if self.caller is None else self.caller.tenant

    @property
    def tenants_salt(self) -> str:
        """For the prefix cache: no tenant learns from it what another has asked."""
        return f"{self.tenant}\0{self.cache_salt}" if self.tenant else self.cache_salt

    @property
    def num_candidates(self) -> int:
        """Answers to generate per prompt."""
        return max(self.num_answers, self.best_of or 1)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of answer `index`. `finish_reason` is on its last piece only.

    `stop_reason`: the stop string or stop token id that ended it, if one did. `scored`: the tokens that begin
    in this piece, if their log-probabilities were asked for.
    """

    index: int
    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    scored: tuple[ScoredToken, ...] = ()
