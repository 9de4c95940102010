"""A worker's own part in a profile: it begins, lasts some seconds or steps, and is written to a file.

Owner: the worker's main loop, which asks `is_due` as time passes. torch is imported with the first profile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from inference_server.engine.text_engine import Engine, no_mark
from inference_server.worker import protocol

BUSY = "a profile is being taken; wait until it is done"
logger = logging.getLogger(__name__)


class Recording(Protocol):
    """What records (`execution/torch_profile.py`)."""

    def mark(self, name: str) -> AbstractContextManager[object]:
        """A named range."""

    def save(self, path: str) -> None:
        """End it and write it."""


class Profiling:
    """At most one profile at a time. `start` begins a recording, `clock` gives monotonic seconds."""

    def __init__(self, engine: Engine, start: Callable[[], Recording], clock: Callable[[], float]) -> None:
        self._engine = engine
        self._start = start
        self._clock = clock
        self._message: protocol.Profile | None = None
        self._recording: Recording | None = None
        self._began_s = 0.0
        self._num_steps = 0

    @property
    def remaining_s(self) -> float | None:
        """How long it will still take, if no step comes; None: there is none."""
        if self._message is None:
            return None
        return max(0.0, self._began_s + self._message.seconds - self._clock())

    def begin(self, message: protocol.Profile) -> protocol.Profiled | None:
        """Begin one; what is returned says why it cannot be."""
        if self._message is not None:
            return protocol.Profiled(code="conflict", message=BUSY)
        try:
            self._recording = self._start()
        except Exception as error:
            return _failure("begin", error)
        self._message, self._began_s, self._num_steps = message, self._clock(), 0
        self._engine.mark = self._recording.mark
        return None

    def stepped(self) -> None:
        """A step is over."""
        self._num_steps += 1

    @property
    def is_due(self) -> bool:
        """Whether it has lasted long enough."""
        return self._message is not None and (
            self.remaining_s == 0.0 or self._num_steps >= self._message.max_steps
        )

    def end(self) -> protocol.Profiled:
        """Write it to its file. Only while there is one."""
        message, recording = self._message, self._recording
        self._message = self._recording = None
        self._engine.mark = no_mark
        if message is None or recording is None:
            raise RuntimeError("there is no profile to end")
        seconds = self._clock() - self._began_s
        try:
            recording.save(message.path)
        except Exception as error:
            return _failure("write", error)
        return protocol.Profiled(num_steps=self._num_steps, seconds=seconds)


def _failure(action: str, error: Exception) -> protocol.Profiled:
    logger.error("the profiler could not %s", action, exc_info=error)
    return protocol.Profiled(
        code="internal_error", message=f"the profiler could not {action}; the server's log has the details"
    )
