"""Log-probabilities in OpenAI's two shapes and in vLLM's for prompts. Knows no requests and no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import msgspec

from inference_server.generation.scores import TOKENS_PER_TURN, Candidate, ScoredToken

LOWEST = -9999.0  # what OpenAI says of a token that is next to impossible; JSON has no minus infinity


def chat_logprobs(scored: Seq[ScoredToken]) -> dict[str, Any]:
    """`logprobs` of a chunk of a chat choice."""
    return {"content": [_chat_entry(token) for token in scored], "refusal": None}


async def whole_chat_logprobs(scored: Seq[ScoredToken]) -> dict[str, Any]:
    """`logprobs` of a whole chat choice."""
    return {"content": await _in_turns(scored, _chat_entry), "refusal": None}


def completion_logprobs(scored: Seq[ScoredToken]) -> dict[str, Any]:
    """`logprobs` of a chunk of a completion choice. `top_logprobs` hold the token itself, as OpenAI's do."""
    return {name: [of(token) for token in scored] for name, of in _OF_COMPLETION.items()}


async def whole_completion_logprobs(scored: Seq[ScoredToken]) -> dict[str, Any]:
    """`logprobs` of a whole completion choice."""
    return {name: await _in_turns(scored, of) for name, of in _OF_COMPLETION.items()}


async def prompt_logprobs(scored: Seq[ScoredToken]) -> msgspec.Raw:
    """`prompt_logprobs` as vLLM gives them: by token id; null for the first token."""
    return await _in_turns(scored, _by_id)


async def _in_turns(scored: Seq[ScoredToken], entry: Callable[[ScoredToken], Any]) -> msgspec.Raw:
    """The JSON list of all tokens' entries, of which there may be very many: others have turns meanwhile."""
    parts: list[bytes] = []
    for first in range(0, len(scored), TOKENS_PER_TURN):
        if first:
            await asyncio.sleep(0)
        entries = [entry(token) for token in scored[first : first + TOKENS_PER_TURN]]
        parts.append(msgspec.json.encode(entries)[1:-1])
    return msgspec.Raw(b"[%b]" % b",".join(parts))


def _chat_entry(token: ScoredToken) -> dict[str, Any]:
    return {**_chat_token(token.own), "top_logprobs": [_chat_token(other) for other in token.top]}


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


_OF_COMPLETION: dict[str, Callable[[ScoredToken], Any]] = {
    "tokens": lambda token: token.own.text,
    "token_logprobs": lambda token: _logprob(token.own),
    "top_logprobs": _by_text,
    "text_offset": lambda token: token.start,
}
