"""Which inputs are embedded in the next step, and in which order requests are served. Pure.

A step computes a rectangle: every input is padded to the longest of its batch. A batch is built around the
input that is due, with those that wait and are nearest to it in length, for as long as that makes a token
cheaper. Who is due follows from fair queueing: an input's rank is how much service its request will have had.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from inference_server.types import EmbeddingRequest


@dataclass(frozen=True, slots=True, order=True)
class WaitingInput:
    """One input that waits. `rank` is in tokens of service (lower first), `arrival` breaks ties."""

    rank: float
    arrival: int
    index: int  # in its request
    request: EmbeddingRequest

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The input."""
        return self.request.inputs[self.index]

    @property
    def num_tokens(self) -> int:
        """Its length."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest step, in padded tokens and inputs, and what a step costs besides, in tokens' worth of work.

    One input alone may be longer than `max_num_tokens`: it cannot be cut.
    """

    max_num_tokens: int
    max_num_seqs: int
    overhead_tokens: int


def choose_inputs(waiting: Seq[WaitingInput], limits: BatchLimits) -> tuple[WaitingInput, ...]:
    """The inputs of the next step: the one with the lowest rank, and its nearest in length that pay."""
    if not waiting:
        return ()
    due = min(waiting, key=_order)
    by_length = sorted(waiting, key=lambda one: (one.num_tokens, one.rank, one.arrival, one.index))
    window = _Window(by_length, _position(by_length, due), limits)
    while window.grow():
        pass
    return tuple(by_length[window.first : window.end])


def _order(one: WaitingInput) -> tuple[float, int, int]:
    return one.rank, one.arrival, one.index


def _position(by_length: Seq[WaitingInput], due: WaitingInput) -> int:
    """Where `due` stands in the list that is sorted by length."""
    start = bisect_left(by_length, due.num_tokens, key=lambda one: one.num_tokens)
    return next(at for at in range(start, len(by_length)) if by_length[at] is due)


class _Window:
    """A run of the list sorted by length, which grows at whichever end costs less per token."""

    def __init__(self, by_length: Seq[WaitingInput], position: int, limits: BatchLimits) -> None:
        self._lengths = [one.num_tokens for one in by_length]
        self._limits = limits
        self.first, self.end = position, position + 1
        self._useful = self._lengths[position]

    def grow(self) -> bool:
        """Take one more input; False if none fits or each would make a token dearer."""
        steps = [
            step for step in ((self.first - 1, self.end), (self.first, self.end + 1)) if self._fits(step)
        ]
        if not steps:
            return False
        cost, step = min((self._cost(step), step) for step in steps)
        if cost > self._cost((self.first, self.end)):
            return False
        self._useful += self._added(step)
        self.first, self.end = step
        return True

    def _fits(self, step: tuple[int, int]) -> bool:
        first, end = step
        if first < 0 or end > len(self._lengths) or end - first > self._limits.max_num_seqs:
            return False
        return self._area(step) <= self._limits.max_num_tokens

    def _area(self, step: tuple[int, int]) -> int:
        first, end = step
        return (end - first) * self._lengths[end - 1]

    def _added(self, step: tuple[int, int]) -> int:
        """Tokens that `step` has more than this window."""
        first, end = step
        return sum(self._lengths[first : self.first]) + sum(self._lengths[self.end : end])

    def _cost(self, step: tuple[int, int]) -> float:
        """Work per useful token."""
        return (self._limits.overhead_tokens + self._area(step)) / (self._useful + self._added(step))
