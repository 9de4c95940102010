"""`/v1/completions`: OpenAI's older, untemplated endpoint."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inference_server.api.schemas.sampling import MAX_TOKEN_ID, GenerationFields, refuse
from inference_server.errors import InvalidRequest
from inference_server.generation.requests import Prompt, SamplingOptions, TextPrompt, TokenPrompt

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 64
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]


class CompletionRequest(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a completion."""

    prompt: Any
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=8)] | None = None
    suffix: str | None = None

    def sampling_options(self) -> SamplingOptions:
        """As chat's, but with OpenAI's short default."""
        options = GenerationFields.sampling_options(self)
        return msgspec.structs.replace(options, fallback_max_tokens=DEFAULT_MAX_TOKENS)

    def prompts(self) -> tuple[Prompt, ...]:
        """One per choice: text, token ids, or lists of either.

        Raises:
            InvalidRequest: `prompt` is none of these, empty, or too many.
        """
        prompt = self.prompt
        if isinstance(prompt, str):
            return (TextPrompt(prompt),)
        if not isinstance(prompt, list) or not prompt:
            raise _bad_prompt()
        if _is_token_ids(prompt):
            return (TokenPrompt(tuple(prompt)),)
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt: at most {MAX_PROMPTS} prompts per request", param="prompt")
        return tuple(_one(entry) for entry in prompt)

    def check(self) -> None:
        """See `GenerationFields.check`."""
        GenerationFields.check(self)
        refuse(bool(self.echo), "echo", "true")
        refuse(self.best_of not in (None, 1), "best_of", "values above 1")
        refuse(bool(self.suffix), "suffix")


def _one(entry: Any) -> Prompt:
    if isinstance(entry, str):
        return TextPrompt(entry)
    if _is_token_ids(entry):
        return TokenPrompt(tuple(entry))
    raise _bad_prompt()


def _is_token_ids(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and bool(entry)
        and all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in entry)
    )


def _bad_prompt() -> InvalidRequest:
    return InvalidRequest("prompt must be a string, a list of token ids, or a list of either", param="prompt")
