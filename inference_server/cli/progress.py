"""Progress bars of fetches and conversions on a terminal, drawn by rich.

It knows stages by name, not what happens in them.
"""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from inference_server.worker import protocol


class StageBars:
    """One bar per stage; a stage whose extent is unknown pulses. Use as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(file=stream))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StageBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, progress: protocol.Progress) -> None:
        if progress.stage not in self._tasks:
            self._complete_others()
            self._tasks[progress.stage] = self._bars.add_task(progress.stage.ljust(10), total=None)
        if progress.fraction is not None:
            self._bars.update(self._tasks[progress.stage], total=1.0, completed=progress.fraction)

    def _complete_others(self) -> None:
        for task in self._tasks.values():
            self._bars.update(task, total=1.0, completed=1.0)
