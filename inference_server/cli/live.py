"""A table that is drawn anew in its place, by rich. It knows cells, not what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


class LiveTable:
    """Use as a context manager; the last table stays on the screen."""

    def __init__(self, stream: TextIO) -> None:
        self._live = Live(console=Console(file=stream), auto_refresh=False)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, titles: Sequence[str], rows: Sequence[Sequence[str]], footer: str) -> None:
        """Put this table in the place of the one before. Cells are plain text, never markup."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for title in titles:
            table.add_column(title, no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._live.update(Group(table, Text(footer, style="dim")), refresh=True)
