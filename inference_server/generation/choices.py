"""Whole answers: the pieces of each put together, and the best of several chosen. Knows no JSON."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from inference_server.generation.requests import TextDelta
from inference_server.generation.scores import ScoredToken
from inference_server.generation.service import Generation
from inference_server.types import FinishReason


@dataclass(slots=True)
class Choice:
    """One whole answer. `prompt`: its prompt's tokens, if their log-probabilities were asked for."""

    index: int
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    scored: list[ScoredToken] = field(default_factory=list)
    prompt: tuple[ScoredToken, ...] = ()


async def whole_choices(generation: Generation) -> list[Choice]:
    """Run a request to its end; the answers to give, in order.

    Raises:
        WorkerDied, InternalError, InvalidRequest: as `Generation.deltas`.
    """
    pieces: list[list[str]] = [[] for _ in generation.answers]
    choices = [Choice(index) for index in range(len(generation.answers))]
    async with aclosing(generation.deltas()) as deltas:
        async for delta in deltas:
            pieces[delta.index].append(delta.text)
            _take(choices[delta.index], delta)
    for choice, texts in zip(choices, pieces, strict=True):
        choice.text = "".join(texts)
        choice.prompt = generation.prompts[choice.index // generation.num_candidates].tokens
    return _best(generation, choices)


def _take(choice: Choice, delta: TextDelta) -> None:
    choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
    if delta.scored:
        choice.scored += delta.scored


def _best(generation: Generation, choices: Seq[Choice]) -> list[Choice]:
    """Of each prompt's candidates, the ones whose tokens the model found likeliest on average."""
    size, wanted = generation.num_candidates, generation.num_answers
    if size == wanted:
        return list(choices)

    def likelihood(choice: Choice) -> float:
        return generation.answers[choice.index].mean_logprob

    best: list[Choice] = []
    for first in range(0, len(choices), size):
        best += sorted(choices[first : first + size], key=likelihood, reverse=True)[:wanted]
    return [replace(choice, index=index) for index, choice in enumerate(best)]
