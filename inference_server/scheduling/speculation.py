"""Guesses at what a sequence says next, from what it has said before: prompt lookup, without a second model.

The last few tokens often stood earlier in the prompt or the output; what followed them then is the guess. It
costs a dictionary look-up. The runner verifies a guess in the step that would have computed one token, so a
right one saves a step and a wrong one only its computation: the output is the same either way.

After Saxena, "Prompt Lookup Decoding" (2023). Pure: tokens in, tokens out; it knows no scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

MIN_NGRAM = 2
MAX_NGRAM = 4
MAX_INDEXED_AT_ONCE = 4096  # a very long prompt is indexed over several steps, so that none is delayed

_FIRST_LENGTH = 4
_WEIGHT = 0.3  # of the newest verification in the acceptance rate
_FIRST_RATE = 0.5
_MIN_RATE = 0.25  # of accepted drafts; with fewer they do not pay
_FIRST_PAUSE = 16  # tokens without drafts
_MAX_PAUSE = 512


class NgramIndex:
    """For each n-gram of a growing list of tokens, where it was last followed by something."""

    __slots__ = ("_followers", "_num_indexed")

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0  # the tokens before this position are known as followers

    def catch_up(self, token_ids: Seq[int]) -> bool:
        """Take in tokens appended since the last call; False if there are more than one call takes."""
        end = min(len(token_ids), self._num_indexed + MAX_INDEXED_AT_ONCE)
        for position in range(max(self._num_indexed, MIN_NGRAM), end):
            for size in range(MIN_NGRAM, min(MAX_NGRAM, position) + 1):
                self._followers[tuple(token_ids[position - size : position])] = position
        self._num_indexed = end
        return end == len(token_ids)

    def find(self, token_ids: Seq[int]) -> int | None:
        """The position after the latest earlier occurrence of the longest suffix that has one."""
        for size in range(min(MAX_NGRAM, len(token_ids)), MIN_NGRAM - 1, -1):
            position = self._followers.get(tuple(token_ids[-size:]))
            if position is not None:
                return position
        return None


class Drafter:
    """One sequence's guesses, and whether they pay.

    The draft length doubles when all are accepted and falls to the number accepted when not. When the moving
    acceptance rate is too low there is a pause, twice as long each time; after it one failure is enough for
    the next.
    """

    __slots__ = ("_index", "_length", "_max_length", "_pause", "_rate", "_resume_at")

    def __init__(self, max_length: int) -> None:
        self._index = NgramIndex()
        self._max_length = max_length
        self._length = min(_FIRST_LENGTH, max_length)
        self._rate = _FIRST_RATE
        self._pause = _FIRST_PAUSE
        self._resume_at = 0  # number of tokens

    def expects_draft(self, token_ids: Seq[int]) -> bool:
        """Whether `propose` would have something for these tokens."""
        return self._find(token_ids) is not None

    def propose(self, token_ids: Seq[int], max_length: int) -> tuple[int, ...]:
        """At most `max_length` tokens that may follow; empty if there is no guess or it does not pay."""
        length = min(self._length, max_length)
        position = self._find(token_ids) if length > 0 else None
        if position is None:
            return ()
        found = list(token_ids[position : position + length])
        period = len(found)  # shorter than asked for: the guess runs into the end, and repeats from there
        return tuple([found[index % period] for index in range(length)])

    def learn(self, *, num_tokens: int, num_drafts: int, num_accepted: int) -> None:
        """`num_accepted` of `num_drafts` were right, and the sequence now has `num_tokens` tokens."""
        self._rate += _WEIGHT * (num_accepted / num_drafts - self._rate)
        if num_accepted == num_drafts:
            self._length = min(self._max_length, max(self._length, 2 * num_drafts))
        else:
            self._length = max(1, num_accepted)
        if self._rate < _MIN_RATE:
            self._rate = _MIN_RATE
            self._resume_at = num_tokens + self._pause
            self._pause = min(2 * self._pause, _MAX_PAUSE)
        elif self._rate > _FIRST_RATE:
            self._pause = _FIRST_PAUSE

    def _find(self, token_ids: Seq[int]) -> int | None:
        if len(token_ids) < self._resume_at or not self._index.catch_up(token_ids):
            return None
        return self._index.find(token_ids)
