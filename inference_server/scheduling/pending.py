"""A step that has been launched, and what it gave. No tensors here, and no step is computed."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from inference_server.types import TokenScore


@dataclass(frozen=True, slots=True)
class StepScores:
    """The scores that a step's requests asked for, by request id.

    `outputs`: of what was sampled, an entry for each token in `PendingStep.tokens`, or more.
    `prompts`: of the positions `ScheduledSequence.scored`.
    """

    outputs: Mapping[str, Seq[TokenScore]]
    prompts: Mapping[str, Seq[TokenScore]]


class PendingStep(Protocol):
    """One step that has been launched."""

    def tokens(self) -> Seq[Seq[int]]:
        """Wait for the step; what it sampled for each entry of `batch.sampling`, in that order.

        One token, and one more for each draft that was right: draft i stands if it equals token i. For a
        sequence whose logits are not finite, `(INVALID_TOKEN,)`. Raises whatever the forward pass raises; the
        engine fails the requests of the batch and goes on.
        """

    def scores(self) -> StepScores | None:
        """After `tokens`: the scores that were asked for, or None if none were."""


class FinishedStep:
    """A step that was computed while it was launched."""

    __slots__ = ("_scores", "_tokens")

    def __init__(self, tokens: Seq[Seq[int]], scores: StepScores | None = None) -> None:
        self._tokens = tokens
        self._scores = scores

    def tokens(self) -> Seq[Seq[int]]:
        """See `PendingStep.tokens`."""
        return self._tokens

    def scores(self) -> StepScores | None:
        """See `PendingStep.scores`."""
        return self._scores


class FailedStep:
    """A step that could not be launched: its turn to fail comes after the steps before it."""

    __slots__ = ("_error",)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def tokens(self) -> Seq[Seq[int]]:
        """Raises the error of the launch."""
        raise self._error

    def scores(self) -> StepScores | None:
        """There are none."""
        return None
