"""Sequences in an order: by rank (priority, then arrival) or by seniority. It decides nothing."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import pairwise
from operator import attrgetter

from inference_server.errors import InternalError
from inference_server.scheduling.sequence import Sequence

Order = Callable[[Sequence], tuple[int, int]]
by_rank: Order = attrgetter("rank")
by_seniority: Order = attrgetter("seniority")


class RankedSequences:
    """A list kept sorted by a key. Keys are unique, so that each sequence has one place."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._members: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._members)

    def __getitem__(self, index: int) -> Sequence:
        return self._members[index]

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in its place."""
        insort(self._members, sequence, key=self._order)

    def remove(self, sequence: Sequence) -> None:
        """Take a member out.

        Raises:
            InternalError: it is none.
        """
        index = bisect_left(self._members, self._order(sequence), key=self._order)
        if index == len(self._members) or self._members[index] is not sequence:
            raise InternalError(f"sequence {sequence.request_id!r} is not where it should be")
        del self._members[index]

    def is_sorted(self) -> bool:
        """For integrity checks."""
        ranks = [self._order(member) for member in self._members]
        return all(before < after for before, after in pairwise(ranks))
