"""What one step computes, as plain values: the scheduler makes a batch, the runner reads it.

A batch holds for one step: its sequences are the scheduler's own and change at the next commit.
"""

from __future__ import annotations

import msgspec

from inference_server.scheduling.sequence import Sequence

INVALID_TOKEN = -1  # a runner's answer for a sequence whose logits are not finite


class ScheduledSequence(msgspec.Struct, frozen=True, gc=False):
    """Tokens `start … start + num_new_tokens - 1` of one sequence.

    `samples`: these are the last tokens that the sequence has, so the logits of the last one give its next.
    `draft_token_ids`: the last of the new tokens, guessed, not yet in `sequence.token_ids`.
    `carries`: the one new token is not known yet; it is what the step before, still in flight, samples.
    """

    sequence: Sequence
    start: int
    num_new_tokens: int
    samples: bool
    draft_token_ids: tuple[int, ...] = ()
    carries: bool = False


class Batch(msgspec.Struct, frozen=True):
    """One step's work, and the ids of the requests that had to give up their blocks for it."""

    scheduled: tuple[ScheduledSequence, ...]
    preempted: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return sum([item.num_new_tokens for item in self.scheduled])

    @property
    def num_seqs(self) -> int:
        """Sequences to compute."""
        return len(self.scheduled)

    @property
    def sampling(self) -> tuple[ScheduledSequence, ...]:
        """Those that get a next token, in order."""
        return tuple([item for item in self.scheduled if item.samples])
