"""A runner that queues its work, for an engine that takes one finished step at a time."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from inference_server.scheduling.batch import Batch


class _Pending(Protocol):
    def tokens(self) -> Seq[Seq[int]]: ...


class _Launching(Protocol):
    def launch(self, batch: Batch) -> _Pending: ...

    def is_fatal(self, error: Exception) -> bool: ...


class Synchronous:
    """Waits for each step."""

    def __init__(self, runner: _Launching) -> None:
        self._runner = runner

    def execute(self, batch: Batch) -> Seq[int]:
        """See `StepRunner.execute`."""
        return [tokens[0] for tokens in self._runner.launch(batch).tokens()]

    def is_fatal(self, error: Exception) -> bool:
        """See `StepRunner.is_fatal`."""
        return self._runner.is_fatal(error)
