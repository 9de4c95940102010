"""What the engine asks of whatever computes its steps. No tensors here, and no step is computed."""

from __future__ import annotations

from typing import Protocol

from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import PendingStep


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
