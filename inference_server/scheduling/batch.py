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
    `draft_token_ids`: the last of the new tokens are guesses that follow `sequence.token_ids`; the logits of
    each, and of the token before them, are sampled, and a guess stands as long as it equals what was sampled
    before it. `carries`: the one new token is not known here yet; it is what the step before, still in
    flight, samples for this sequence. A sequence never has both. `scored`: positions of the prompt tokens
    whose scores are wanted of this step; each comes from the logits of the token before.
    """

    sequence: Sequence
    start: int
    num_new_tokens: int
    samples: bool
    draft_token_ids: tuple[int, ...] = ()
    carries: bool = False
    scored: range = range(0)

    @property
    def scored_offsets(self) -> range:
        """Which of the new tokens give the scores, counted from the first."""
        shift = self.start + 1
        return range(self.scored.start - shift, self.scored.stop - shift)

    @property
    def decodes(self) -> bool:
        """Whether it computes one token, and guesses after it, to get the next."""
        return self.samples and self.num_new_tokens == 1 + len(self.draft_token_ids)

    @property
    def sample_position(self) -> int:
        """Position in the sequence of the first token that is sampled; guess i is judged at this plus i.

        With `carries`, `sequence.num_tokens` is one behind it.
        """
        return self.start + self.num_new_tokens - len(self.draft_token_ids)


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

    @property
    def decoding(self) -> tuple[ScheduledSequence, ...]:
        """Those that compute one token, and guesses after it, to get the next."""
        return tuple([item for item in self.scheduled if item.decodes])

    @property
    def prompt_depth(self) -> int:
        """Tokens before the deepest piece of a prompt; 0 if there is none."""
        return max([item.start for item in self.scheduled if not item.decodes], default=0)
