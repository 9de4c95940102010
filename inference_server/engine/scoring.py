"""Puts a step's log-probabilities into the deltas of the requests that asked for them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import msgspec

from inference_server.scheduling.pending import StepScores
from inference_server.types import TokenDelta, TokenScore

_NONE: Seq[TokenScore] = ()


def with_scores(deltas: Iterable[TokenDelta], scores: StepScores) -> list[TokenDelta]:
    """The deltas with their scores, and one more for each prompt that was scored and has no token yet."""
    scored = [_scored(delta, scores) for delta in deltas]
    have_tokens = {delta.request_id for delta in scored}
    return scored + [
        TokenDelta(request_id=request_id, prompt_scores=tuple(found))
        for request_id, found in scores.prompts.items()
        if request_id not in have_tokens
    ]


def _scored(delta: TokenDelta, scores: StepScores) -> TokenDelta:
    outputs = scores.outputs.get(delta.request_id, _NONE)
    prompt = scores.prompts.get(delta.request_id, _NONE)
    if not outputs and not prompt:
        return delta
    return msgspec.structs.replace(
        delta, scores=tuple(outputs[: len(delta.token_ids)]), prompt_scores=tuple(prompt)
    )
