"""Terminals for tests: streams that remember, and lines that are already typed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from inference_server.cli.main import main
from inference_server.cli.terminal import Terminal


class Stream(io.StringIO):
    """A text stream that may claim to be a terminal."""

    def __init__(self, text: str = "", *, tty: bool = False) -> None:
        super().__init__(text)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str


def typed(lines: Iterable[str | type[BaseException]]) -> Callable[[str], str]:
    """An `ask` that returns these lines one by one (or raises, for Ctrl-C), then Ctrl-D."""
    rest = iter(lines)

    def ask(_prompt: str) -> str:
        line = next(rest, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return ask


def run(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    tty: bool = False,
    lines: Iterable[str | type[BaseException]] = (),
) -> Result:
    """One command line, run in this process."""
    out, err = Stream(tty=tty), Stream(tty=tty)
    terminal = Terminal(Stream(stdin, tty=tty), out, err, env or {}, typed(lines))
    status = main(arguments, terminal)
    return Result(status, out.getvalue(), err.getvalue())
