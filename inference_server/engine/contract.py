"""What the engine asks of whatever computes its steps. No tensors here, and no step is computed."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from inference_server.scheduling.batch import Batch


class PendingStep(Protocol):
    """One step that has been launched."""

    def tokens(self) -> Seq[Seq[int]]:
        """Wait for the step; what it sampled for each entry of `batch.sampling`, in that order.

        One token, and one more for each draft that was right: draft i stands if it equals token i. For a
        sequence whose logits are not finite, `(INVALID_TOKEN,)`. Raises whatever the forward pass raises; the
        engine fails the requests of the batch and goes on.
        """


class StepRunner(Protocol):
    """Computes steps, in the order in which they are launched."""

    @property
    def max_in_flight(self) -> int:
        """Steps that may be launched before the tokens of the first are asked for: 1 or 2.

        With 1, `launch` may return finished work. With 2, batches may hold sequences that carry a token from
        the step before (`ScheduledSequence.carries`).
        """

    def launch(self, batch: Batch) -> PendingStep:
        """Begin to compute. What the step needs of the batch is read now: sequences change with commits."""

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device is unusable after `error`, so that the process must end."""


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


class OneAtATime(Protocol):
    """Computes a step at once, and knows no drafts."""

    def execute(self, batch: Batch) -> Seq[int]:
        """The next token of each sequence in `batch.sampling`, in that order."""

    def is_fatal(self, error: Exception) -> bool:
        """See `StepRunner.is_fatal`."""


class SynchronousRunner:
    """A `StepRunner` over one that computes a step at once."""

    max_in_flight = 1

    def __init__(self, runner: OneAtATime) -> None:
        self._runner = runner

    def launch(self, batch: Batch) -> PendingStep:
        """See `StepRunner.launch`."""
        return FinishedStep([(token,) for token in self._runner.execute(batch)])

    def is_fatal(self, error: Exception) -> bool:
        """See `StepRunner.is_fatal`."""
        return self._runner.is_fatal(error)
