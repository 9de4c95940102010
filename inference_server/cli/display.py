"""How far a fetch or load has come, shown in a way that fits the terminal. Light: rich is imported late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inference_server.cli.terminal import Terminal

if TYPE_CHECKING:
    from inference_server.worker.protocol import Progress


@contextmanager
def progress_display(terminal: Terminal) -> Iterator[Callable[[Progress], None]]:
    """A bar per stage on a terminal, a line per stage elsewhere."""
    if not terminal.stderr.isatty():
        yield _StageLines(terminal)
        return
    from inference_server.cli.progress import StageBars

    with StageBars(terminal.stderr) as bars:
        yield bars


class _StageLines:
    """Says each stage once; for logs."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._terminal.hint(f"{progress.stage} …")
