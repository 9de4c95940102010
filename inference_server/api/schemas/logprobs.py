"""Log-probabilities in OpenAI's two shapes and in vLLM's for prompts. Knows no requests and no HTTP."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from inference_server.generation.scores import Candidate, ScoredToken

LOWEST = -9999.0  # what OpenAI says of a token that is next to impossible; JSON has no minus infinity


def chat_logprobs(scored: Seq[ScoredToken]) -> dict[str, Any]:
    """`logprobs` of a chat choice, whole or of one chunk."""
    content = [
        {**_chat_token(token.own), "top_logprobs": [_chat_token(other) for other in token.top]}
        for token in scored
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(scored: Seq[ScoredToken]) -> dict[str, Any]:
    """`logprobs` of a completion choice. Every `top_logprobs` holds the token itself, too, as OpenAI's do."""
    return {
        "tokens": [token.own.text for token in scored],
        "token_logprobs": [_logprob(token.own) for token in scored],
        "top_logprobs": [_by_text(token) for token in scored],
        "text_offset": [token.start for token in scored],
    }


def prompt_logprobs(scored: Seq[ScoredToken]) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` as vLLM gives them: by token id; null for the first token."""
    return [_by_id(token) for token in scored]


def _chat_token(candidate: Candidate) -> dict[str, Any]:
    return {"token": candidate.text, "logprob": _logprob(candidate), "bytes": list(candidate.raw)}


def _by_text(token: ScoredToken) -> dict[str, float | None] | None:
    if token.own.logprob is None:
        return None
    found: dict[str, float | None] = {}
    for candidate in (*token.top, token.own):  # of tokens that are spelled alike the likeliest counts
        found.setdefault(candidate.text, _logprob(candidate))
    return found


def _by_id(token: ScoredToken) -> dict[str, Any] | None:
    if token.own.logprob is None:
        return None
    return {
        str(candidate.token_id): {
            "logprob": _logprob(candidate),
            "rank": candidate.rank,
            "decoded_token": candidate.text,
        }
        for candidate in (token.own, *token.top)
    }


def _logprob(candidate: Candidate) -> float | None:
    return None if candidate.logprob is None else max(candidate.logprob, LOWEST)
