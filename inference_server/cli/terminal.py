"""What the commands say and ask: text, tables, colour on a terminal only. It knows no command.

Answers, tables and JSON go to standard output; errors, hints and progress to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

# Everything that moves cursors, rings bells or changes colours; newline and tab are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BOLD, _DIM, _RED, _GREEN, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
_CLEAR_LINE = "\r\x1b[2K"


def _ask(prompt: str) -> str:
    """One line from the terminal, with line editing where Python has it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it is what gives input() its editing
    return input(prompt)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The streams and environment of one command. `ask` reads a line or raises EOFError."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    env: Mapping[str, str]
    ask: Callable[[str], str] = _ask

    @staticmethod
    def of_process() -> Terminal:
        """That of this process."""
        return Terminal(sys.stdin, sys.stdout, sys.stderr, os.environ)

    @property
    def is_interactive(self) -> bool:
        """Whether a person types and reads."""
        return self.stdin.isatty() and self.stdout.isatty()

    def print(self, text: str = "", *, end: str = "\n") -> None:
        """Text to standard output, at once."""
        _write(self.stdout, text + end)

    def print_json(self, value: object) -> None:
        """A JSON document to standard output."""
        self.print(json.dumps(value, indent=2))

    def foreign(self, text: str) -> str:
        """Text from elsewhere (a model, a server), made harmless if a terminal shows it."""
        return _CONTROL.sub("", text) if self.stdout.isatty() else text

    def error(self, message: str) -> None:
        """One `error:` line for each line of the message."""
        label = self._styled("error:", _RED, self.stderr)
        for line in _CONTROL.sub(" ", message).splitlines() or [""]:
            _write(self.stderr, f"{label} {line}\n")

    def hint(self, text: str) -> None:
        """A remark that is no error."""
        _write(self.stderr, self._styled(text, _DIM, self.stderr) + "\n")

    def status(self, text: str) -> None:
        """A line that the next one replaces; only a terminal shows it. Empty: remove it."""
        if self.stderr.isatty():
            shown = self._styled(_CONTROL.sub(" ", text), _DIM, self.stderr) if text else ""
            _write(self.stderr, _CLEAR_LINE + shown)

    def bold(self, text: str) -> str:
        """Bold where standard output can show it."""
        return self._styled(text, _BOLD, self.stdout)

    def dim(self, text: str) -> str:
        """Faint where standard output can show it."""
        return self._styled(text, _DIM, self.stdout)

    def green(self, text: str) -> str:
        """Green where standard output can show it."""
        return self._styled(text, _GREEN, self.stdout)

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Left-aligned columns; the last one is as long as it needs to be."""
        cells = [[self.foreign(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        self.print(self.bold(_columns(titles, widths)))
        for row in cells:
            self.print(_columns(row, widths))

    def _styled(self, text: str, style: str, stream: TextIO) -> str:
        wanted = stream.isatty() and not self.env.get("NO_COLOR") and self.env.get("TERM") != "dumb"
        return f"{style}{text}{_RESET}" if wanted else text


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a terminal that cannot show it, such as LANG=C
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
