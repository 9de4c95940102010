"""Who may guess in a step, and what came of it. How a guess is made is `speculation.py`.

Owner of the drafters and of the counters; it holds no block and makes no batch.
"""

from __future__ import annotations

from inference_server.scheduling.batch import ScheduledSequence
from inference_server.scheduling.ranking import RankedSequences
from inference_server.scheduling.sequence import Sequence
from inference_server.scheduling.speculation import Drafter
from inference_server.types import Speculation


class Drafting:
    """Guesses for the running sequences, while these are few enough; counts drafts, and the right ones."""

    def __init__(self, speculation: Speculation | None, running: RankedSequences) -> None:
        self._speculation = speculation
        self._running = running
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    def propose(self, sequence: Sequence, budget: int) -> tuple[int, ...]:
        """A guess at what follows, within the budget and the length limit."""
        drafter = self._drafter(sequence)
        if drafter is None:
            return ()
        # What follows the last guess is sampled too, and may be the sequence's last token.
        num_left = sequence.max_num_tokens - 1 - len(sequence.token_ids)
        return drafter.propose(sequence.token_ids, min(budget, num_left))

    def must_wait(self) -> bool:
        """Whether the results of the step in flight are wanted before the next step is made.

        They are while anybody guesses: a guess follows a token that is known. All wait then, since a step
        without the guessing one would halve its pace.
        """
        if self._speculation is None:
            return False
        return any(map(self._is_guessing, self._running))

    def learn(self, item: ScheduledSequence, num_accepted: int) -> None:
        """So many of a step's drafts for this sequence were right; the sequence has its new tokens."""
        num_drafts = len(item.draft_token_ids)
        self.num_draft_tokens += num_drafts
        self.num_accepted_tokens += num_accepted
        drafter = item.sequence.drafter
        if drafter is not None:
            drafter.learn(
                num_tokens=len(item.sequence.token_ids), num_drafts=num_drafts, num_accepted=num_accepted
            )

    def _is_guessing(self, sequence: Sequence) -> bool:
        """Whether it awaits more than one token, or may soon guess what follows the one that it awaits."""
        if sequence.num_awaited_tokens != 1:
            return sequence.num_awaited_tokens > 1
        drafter = self._drafter(sequence)
        return drafter is not None and drafter.expects_draft(sequence.token_ids)

    def _drafter(self, sequence: Sequence) -> Drafter | None:
        """What guesses for this sequence, if anything may do so now."""
        speculation = self._speculation
        if speculation is None or len(self._running) > speculation.max_drafting_seqs:
            return None
        if sequence.constraint is not None:
            return None  # a guess would have to be masked token by token
        if sequence.drafter is None:
            sequence.drafter = Drafter(speculation.max_draft_tokens)
        return sequence.drafter
