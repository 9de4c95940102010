"""Lets in the requests that need a model's tokenizer only, and so do not pass `generation/door.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from inference_server.access.gate import Caller
from inference_server.generation.admission import Admission, QueueLimits
from inference_server.generation.door import Door
from inference_server.generation.templates import NUM_THREADS

MAX_AT_ONCE = 32  # per model: so many come together only if its files are fetched, or the texts are long
MAX_AT_ONCE_TOTAL = 64


class Turnstile:
    """Counts them, and leaves room for other keys as the queues do. Owner: the event loop."""

    def __init__(self, door: Door, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._door = door
        self._clock = clock
        self._admission = Admission(
            QueueLimits(
                max_running=NUM_THREADS,
                max_queued=MAX_AT_ONCE - NUM_THREADS,
                max_queued_total=MAX_AT_ONCE_TOTAL - NUM_THREADS,
                max_queued_tokens=0,
                max_queued_tokens_total=0,
            )
        )

    @contextmanager
    def admitted(self, model: str, caller: Caller | None) -> Iterator[None]:
        """Count a request about a model (its configured name) for the length of the block.

        Raises:
            ShuttingDown, QueueFull: it is not taken now.
            RateLimited, QuotaExceeded: the caller has used up what it may.
        """
        self._door.check_open()
        start_s = self._clock()
        asks = nullcontext() if caller is None else caller.admitted()
        tenant = "" if caller is None else caller.tenant
        with asks, self._admission.admitted(model, 1, tenant):
            yield
        self._admission.observe(self._clock() - start_s)
