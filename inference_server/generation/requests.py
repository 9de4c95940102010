"""What the API asks of the generation service, and what it gets back. Frozen values; no JSON, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from inference_server.types import FinishReason


class ChatPrompt(msgspec.Struct, frozen=True):
    """A conversation for the model's chat template."""

    messages: tuple[Mapping[str, Any], ...]
    add_generation_prompt: bool = True


class TextPrompt(msgspec.Struct, frozen=True):
    """Plain text."""

    text: str


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


class TextRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer per prompt is wanted. `request_id` is the server's own, unique in it.

    `timeout_s` is counted from the moment the service takes the request; it can only shorten the server's.
    `keep_alive_s` is how long the model stays afterwards: below 0 for ever, None as its entry says.
    """

    request_id: str
    model: str
    prompts: tuple[Prompt, ...]
    sampling: SamplingOptions = SamplingOptions()
    stop: tuple[str, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of answer `index`. `finish_reason` is on its last piece only."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
