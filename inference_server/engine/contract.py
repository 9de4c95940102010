"""What the engine asks of whatever computes its steps and holds its memory. No tensors, and no step, here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import PendingStep
from inference_server.types import MemoryReport


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


class Sleeper(Protocol):
    """Gives the memory behind the steps back, and takes it again. Called only while no step is in flight."""

    def sleep(self) -> None:
        """Give back the memory of weights, KV cache and workspace.

        Raises:
            Exception: everything is still held.
        """

    def wake(self) -> None:
        """Hold the same weights again, and a KV cache of unknown content.

        Raises:
            Exception: it sleeps on, and may be woken again.
        """

    def memory(self) -> MemoryReport:
        """What is held now."""


@dataclass(frozen=True, slots=True)
class Sleepless:
    """In a `Sleeper`'s place where there is none: why not, in words that complete "it cannot sleep: …"."""

    reason: str
