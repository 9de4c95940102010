"""Bounded queues: how many sequences and prompt tokens may be in the house, per model and in all.

Refuses before work starts. Nothing waits here: the waiting is in the manager (for the model) and in the
worker (for a turn). Where several tenants share the house, none takes all of a queue: whoever has requests in
it may add some only while they are no more than three times what is left (dynamic thresholds, Choudhury and
Hahne 1998), so that a newcomer always finds room. Owner: the event loop.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inference_server.errors import InvalidRequest, QueueFull

_SMOOTHING = 0.1
_MAX_RETRY_AFTER_S = 60.0
_MAX_SHARE = 3  # of a tenant in a queue, in times of what is left


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """`max_running`: sequences that a model runs at once; what exceeds them is its queue.

    Tokens are those of prompts that are not computed yet. A prompt alone is never too long for a queue.
    """

    max_running: int
    max_queued: int
    max_queued_total: int
    max_queued_tokens: int
    max_queued_tokens_total: int


class Place:
    """What one request holds: places for its sequences, and its prompts' tokens until they are computed."""

    def __init__(self, house: Admission, model: str) -> None:
        self._house = house
        self._model = model
        self._num_tokens = 0

    def hold_tokens(self, num_tokens: int) -> None:
        """So many tokens of prompts are to be computed for it. Raises QueueFull if too many wait already."""
        self.release_tokens()
        self._house.hold_tokens(self._model, num_tokens)
        self._num_tokens = num_tokens

    def release_tokens(self) -> None:
        """They are computed, or nobody wants them any more."""
        self._house.hold_tokens(self._model, -self._num_tokens)
        self._num_tokens = 0


class Admission:
    """Counts sequences in progress: a request has one per prompt and answer."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._in_progress: Counter[str] = Counter()
        self._of_tenant: Counter[tuple[str, str]] = Counter()  # in progress, by tenant and model
        self._tokens: Counter[str] = Counter()  # of prompts that are not computed
        self._mean_seconds = 1.0  # of recent requests, for Retry-After

    @property
    def num_requests(self) -> int:
        """Sequences in progress on all models, queued ones included."""
        return self._in_progress.total()

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of prompts that are not computed yet, on all models."""
        return self._tokens.total()

    def num_in_progress(self, model: str) -> int:
        """Sequences that one model has, queued ones included."""
        return self._in_progress[model]

    def num_queued(self, model: str) -> int:
        """Sequences beyond what the model runs at once."""
        return max(0, self._in_progress[model] - self._limits.max_running)

    @contextmanager
    def admitted(self, model: str, num_seqs: int = 1, tenant: str = "") -> Iterator[Place]:
        """Hold a place for each sequence of a request, for the length of the block.

        Raises:
            InvalidRequest: not even an empty house has so many places.
            QueueFull: the model's or the server's queue is full, or this tenant has its share of it; says
                when to come again.
        """
        self._check_size(num_seqs)
        self._check(model, num_seqs, tenant)
        _add(self._in_progress, model, num_seqs)
        _add(self._of_tenant, (tenant, model), num_seqs)
        place = Place(self, model)
        try:
            yield place
        finally:
            place.release_tokens()
            _add(self._in_progress, model, -num_seqs)
            _add(self._of_tenant, (tenant, model), -num_seqs)

    def hold_tokens(self, model: str, num_tokens: int) -> None:
        """So many tokens more wait to be computed, or fewer. Raises QueueFull; see `Place`."""
        self._check_tokens(model, num_tokens)
        _add(self._tokens, model, num_tokens)

    def observe(self, seconds: float) -> None:
        """A request has finished after this time."""
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)

    def _check_size(self, num_seqs: int) -> None:
        limits = self._limits
        most = limits.max_running + min(limits.max_queued, limits.max_queued_total)
        if num_seqs > most:
            raise InvalidRequest(
                f"the request has {num_seqs} sequences (answers to prompts, or batches of inputs); this "
                f"server takes at most {most} at once. Send it in parts."
            )

    def _check(self, model: str, num_seqs: int, tenant: str) -> None:
        limits = self._limits
        queued = self.num_queued(model)
        grown = max(0, self._in_progress[model] + num_seqs - limits.max_running)
        if grown == 0:
            return
        queued_total = sum(self.num_queued(name) for name in self._in_progress)
        left = limits.max_queued - queued
        left_total = limits.max_queued_total - queued_total
        if grown - queued > left:
            raise self._refusal(f"the model's queue is full: {queued} requests wait for it", queued)
        if grown - queued > left_total:
            raise self._refusal(f"the server's queue is full: {queued_total} requests wait", queued)
        if tenant:
            own = self._num_queued_of(tenant, model)
            own_total = sum(self._num_queued_of(tenant, name) for name in self._in_progress)
            if own and own + num_seqs > _MAX_SHARE * left:
                raise self._refusal(f"{own} requests of this key wait for the model, its share", queued)
            if own_total and own_total + num_seqs > _MAX_SHARE * left_total:
                raise self._refusal(f"{own_total} requests of this key wait, its share of the queue", queued)

    def _num_queued_of(self, tenant: str, model: str) -> int:
        """Of a tenant's sequences, those that wait if its own are the last in the queue."""
        return min(self._of_tenant[tenant, model], self.num_queued(model))

    def _check_tokens(self, model: str, num_tokens: int) -> None:
        waiting, total = self._tokens[model], self._tokens.total()
        if num_tokens <= 0 or not total:
            return
        queued = self.num_queued(model)
        if waiting and waiting + num_tokens > self._limits.max_queued_tokens:
            raise self._refusal(f"prompts of {waiting} tokens wait for the model, as many as may", queued)
        if total + num_tokens > self._limits.max_queued_tokens_total:
            raise self._refusal(f"prompts of {total} tokens wait in all, as many as may", queued)

    def _refusal(self, reason: str, queued: int) -> QueueFull:
        return QueueFull(f"{reason}; try again later", retry_after_s=self._retry_after_s(queued))

    def _retry_after_s(self, queued: int) -> float:
        """When the queue will have moved on, by the recent mean request time."""
        rounds = (queued + 1) / self._limits.max_running
        return float(min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self._mean_seconds * rounds))))


def _add(counter: Counter[Any], name: Any, number: int) -> None:
    """Count, and keep no zeros."""
    counter[name] += number
    if not counter[name]:
        del counter[name]
