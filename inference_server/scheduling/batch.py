"""What one step computes: a frozen view that the scheduler hands to the runner."""

from __future__ import annotations

from dataclasses import dataclass

from inference_server.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """`num_new_tokens` tokens of `sequence`, from position `start`.

    `samples`: whether this step's last position gives the sequence's next token.
    """

    sequence: Sequence
    start: int
    num_new_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything of one step."""

    scheduled: tuple[ScheduledSequence, ...]
    preempted: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new_tokens for item in self.scheduled)

    @property
    def num_seqs(self) -> int:
        return len(self.scheduled)

    @property
    def sampling(self) -> tuple[ScheduledSequence, ...]:
        return tuple(item for item in self.scheduled if item.samples)
