"""How far a fetch or load has come, shown in a way that fits the terminal. Light: rich is imported late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inference_server.cli.terminal import Terminal

if TYPE_CHECKING:
    from inference_server.worker.protocol import Progress

logger = logging.getLogger(__name__)


@contextmanager
def progress_display(terminal: Terminal) -> Iterator[Callable[[Progress], None]]:
    """A bar per stage on a terminal, a line per stage elsewhere."""
    if not terminal.stderr.isatty():
        yield _StageLines(lambda stage: terminal.hint(f"{stage} …"))
        return
    from inference_server.cli.progress import StageBars

    with StageBars(terminal.stderr) as bars:
        yield bars


@contextmanager
def progress_log() -> Iterator[Callable[[Progress], None]]:
    """A log record per stage, where standard error is for log lines only."""
    yield _StageLines(lambda stage: logger.info("preloading: %s", stage))


class _StageLines:
    """Says each stage once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._say(progress.stage)
