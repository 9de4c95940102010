"""Bounded queues: how many sequences may be in the house, per model and in all. Refuses before work starts.

Nothing waits here: the waiting is in the manager (for the model) and in the worker (for a turn). Owner: the
event loop.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from inference_server.errors import QueueFull

_SMOOTHING = 0.1
_MAX_RETRY_AFTER_S = 60.0


class Admission:
    """Counts sequences in progress: a request has one per prompt.

    Whatever exceeds what a model runs at once is its queue.
    """

    def __init__(self, *, max_running: int, max_queued: int, max_queued_total: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._max_queued_total = max_queued_total
        self._in_progress: Counter[str] = Counter()
        self._mean_seconds = 1.0  # of recent requests, for Retry-After

    @property
    def num_requests(self) -> int:
        """Sequences in progress on all models, queued ones included."""
        return self._in_progress.total()

    def num_in_progress(self, model: str) -> int:
        """Sequences that one model has, queued ones included."""
        return self._in_progress[model]

    def num_queued(self, model: str) -> int:
        """Sequences beyond what the model runs at once."""
        return max(0, self._in_progress[model] - self._max_running)

    @contextmanager
    def admitted(self, model: str, num_seqs: int = 1) -> Iterator[None]:
        """Hold a place for each sequence of a request, for the length of the block.

        Raises:
            QueueFull: the model's or the server's queue is full; says when to come again.
        """
        self._check(model, num_seqs)
        self._in_progress[model] += num_seqs
        try:
            yield
        finally:
            self._in_progress[model] -= num_seqs
            if not self._in_progress[model]:
                del self._in_progress[model]

    def observe(self, seconds: float) -> None:
        """A request has finished after this time."""
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)

    def _check(self, model: str, num_seqs: int) -> None:
        queued = self.num_queued(model)
        grown = max(0, self._in_progress[model] + num_seqs - self._max_running)
        if grown == 0:
            return
        if grown > self._max_queued:
            raise QueueFull(
                f"the model's queue is full: {queued} requests wait for it; try again later",
                retry_after_s=self._retry_after_s(queued),
            )
        queued_total = sum(self.num_queued(name) for name in self._in_progress)
        if queued_total + grown - queued > self._max_queued_total:
            raise QueueFull(
                f"the server's queue is full: {queued_total} requests wait; try again later",
                retry_after_s=self._retry_after_s(queued),
            )

    def _retry_after_s(self, queued: int) -> float:
        """When the queue will have moved on, by the recent mean request time."""
        rounds = (queued + 1) / self._max_running
        return float(min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self._mean_seconds * rounds))))
