"""What the API asks of the generation service, and what it gets back. Frozen values; no JSON, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inference_server.types import FinishReason, Usage


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
    """What the client set; None means the model's default, or else the server's."""

    max_tokens: int | None = None
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
    """One answer wanted. `timeout_s` is counted from the moment the service takes it."""

    request_id: str
    model: str
    prompt: Prompt
    sampling: SamplingOptions
    stop: tuple[str, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer. `finish_reason` and `usage` are on the last one only."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
