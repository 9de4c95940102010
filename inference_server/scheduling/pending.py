"""A step that has been launched, and what it gave. No tensors here, and no step is computed."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol


class PendingStep(Protocol):
    """One step that has been launched."""

    def tokens(self) -> Seq[Seq[int]]:
        """Wait for the step; what it sampled for each entry of `batch.sampling`, in that order.

        One token, and one more for each draft that was right: draft i stands if it equals token i. For a
        sequence whose logits are not finite, `(INVALID_TOKEN,)`. Raises whatever the forward pass raises; the
        engine fails the requests of the batch and goes on.
        """


class FinishedStep:
    """A step that was computed while it was launched."""

    __slots__ = ("_tokens",)

    def __init__(self, tokens: Seq[Seq[int]]) -> None:
        self._tokens = tokens

    def tokens(self) -> Seq[Seq[int]]:
        """See `PendingStep.tokens`."""
        return self._tokens


class FailedStep:
    """A step that could not be launched: its turn to fail comes after the steps before it."""

    __slots__ = ("_error",)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def tokens(self) -> Seq[Seq[int]]:
        """Raises the error of the launch."""
        raise self._error
