"""Bounded queues: how many requests may be in the house, per model and in all. Refuses before work starts.

Owner: the event loop.
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
    """Counts requests in progress. Whatever exceeds what a model runs at once is its queue."""

    def __init__(self, *, max_running: int, max_queued: int, max_queued_total: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._max_queued_total = max_queued_total
        self._in_progress: Counter[str] = Counter()
        self._mean_seconds = 1.0  # of recent requests, for Retry-After

    @property
    def num_requests(self) -> int:
        """Requests in progress, queued ones included."""
        return self._in_progress.total()

    def num_queued(self, model: str) -> int:
        """Requests beyond what the model runs at once."""
        return max(0, self._in_progress[model] - self._max_running)

    @contextmanager
    def admitted(self, model: str) -> Iterator[None]:
        """Hold a place for the length of a request.

        Raises:
            QueueFull: the model's or the server's queue is full; says when to come again.
        """
        self.check(model)
        self._in_progress[model] += 1
        try:
            yield
        finally:
            self._in_progress[model] -= 1
            if not self._in_progress[model]:
                del self._in_progress[model]

    def observe(self, seconds: float) -> None:
        """A request has finished after this time."""
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)

    def check(self, model: str) -> None:
        """Raise QueueFull if a request for `model` would be refused now."""
        queued = self.num_queued(model)
        if self._in_progress[model] >= self._max_running + self._max_queued:
            raise QueueFull(
                f"{queued} requests already wait for this model; try again later",
                retry_after_s=self._retry_after_s(queued),
            )
        if sum(self.num_queued(name) for name in self._in_progress) >= self._max_queued_total:
            raise QueueFull(
                "too many requests already wait on this server; try again later",
                retry_after_s=self._retry_after_s(queued),
            )

    def _retry_after_s(self, queued: int) -> float:
        """When the queue will have moved on, by the recent mean request time."""
        rounds = (queued + 1) / self._max_running
        return float(min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self._mean_seconds * rounds))))
