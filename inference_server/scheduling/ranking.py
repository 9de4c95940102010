"""Sequences in the order in which they are served: by priority, then by arrival. It decides nothing."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import pairwise
from operator import attrgetter

from inference_server.errors import InternalError
from inference_server.scheduling.sequence import Sequence

_rank = attrgetter("rank")


class RankedSequences:
    """A list kept sorted by rank. Ranks are unique, so that each sequence has one place."""

    def __init__(self) -> None:
        self._members: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._members)

    def __getitem__(self, index: int) -> Sequence:
        return self._members[index]

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in its place."""
        insort(self._members, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a member out.

        Raises:
            InternalError: it is none.
        """
        index = bisect_left(self._members, sequence.rank, key=_rank)
        if index == len(self._members) or self._members[index] is not sequence:
            raise InternalError(f"sequence {sequence.request_id!r} is not where it should be")
        del self._members[index]

    def is_sorted(self) -> bool:
        """For integrity checks."""
        ranks = [member.rank for member in self._members]
        return all(before < after for before, after in pairwise(ranks))
