"""`/v1/completions`: OpenAI's older, untemplated endpoint."""

from __future__ import annotations

from typing import Any

import msgspec

from inference_server.api.schemas.sampling import (
    MAX_TOKEN_ID,
    GenerationFields,
    NotNegative,
    NumAnswers,
    NumLogprobs,
)
from inference_server.errors import InvalidRequest, UnsupportedParameter
from inference_server.generation.requests import (
    Prompt,
    SamplingOptions,
    TextPrompt,
    TextRequest,
    TokenPrompt,
)

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 64


class CompletionRequest(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a completion."""

    prompt: Any
    max_tokens: NotNegative | None = None
    logprobs: NumLogprobs | None = None
    echo: bool | None = None
    best_of: NumAnswers | None = None
    suffix: str | None = None

    def sampling_options(self) -> SamplingOptions:
        """As chat's, but with OpenAI's short default. With `max_tokens` 0 one token is made and not given."""
        return msgspec.structs.replace(
            GenerationFields.sampling_options(self),
            max_tokens=None if self.max_tokens is None else max(1, self.max_tokens),
            fallback_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=self.logprobs,
        )

    def text_request(self, request_id: str, prompts: tuple[Prompt, ...]) -> TextRequest:
        """As chat's, with what only completions have.

        Their scores hold the end token's, as vLLM's do: evaluation harnesses count on one for each token.
        """
        return msgspec.structs.replace(
            GenerationFields.text_request(self, request_id, prompts),
            scores_end=True,
            best_of=self.best_of,
            echo=bool(self.echo),
            echo_only=self.max_tokens == 0,
        )

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
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("max_tokens 0 needs echo: true, or there is no answer", param="max_tokens")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise InvalidRequest(f"best_of is {self.best_of}, which is below n ({self.n})", param="best_of")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise InvalidRequest(
                "best_of: the best answer is known when all are complete; leave out stream", param="best_of"
            )
        if self.suffix:
            raise UnsupportedParameter(
                "suffix: each model family marks a gap in its own way; write the model's fill-in-the-middle "
                "tokens into the prompt",
                param="suffix",
            )


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
