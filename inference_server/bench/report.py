"""How results are shown and kept: tables for people, JSON for programs, files. It measures nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inference_server.bench.options import ReportOptions
from inference_server.errors import ConfigError

_WIDTH = 120  # where no terminal says how wide it is

Show = Callable[[Console, Mapping[str, object]], None]
Draw = Callable[[], str]


def deliver(result: Mapping[str, object], report: ReportOptions, *, show: Show, draw: Draw) -> None:
    """Print the result, then write the files that were asked for. `draw` makes the page of the plot.

    Raises:
        ConfigError: a file cannot be written.
    """
    if report.as_json:
        sys.stdout.write(to_json(result) + "\n")
    else:
        show(Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH), result)
    if report.save_result is not None:
        write_whole(report.save_result, to_json(result) + "\n", "--save-result")
    if report.plot is not None:
        write_whole(report.plot, draw(), "--plot")


def check_files(report: ReportOptions) -> None:
    """Refuse before anything is measured what could not be kept afterwards.

    Raises:
        ConfigError: a file that was asked for has no folder to lie in.
    """
    for flag, path in (("--save-result", report.save_result), ("--plot", report.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{flag}: cannot write {path}: there is no folder {path.parent}")
        if path is not None and path.is_dir():
            raise ConfigError(f"{flag}: cannot write {path}: it is a folder")


def to_json(result: Mapping[str, object]) -> str:
    """One JSON object, its keys in the order of the result."""
    return json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)


def write_whole(path: Path, text: str, flag: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        ConfigError: it cannot be written there; the message names `flag`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{flag}: cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; yields the function that moves it by one."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)


def number(value: object) -> str:
    """A figure for a table with as many digits as matter; a dash where there is none."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def failures(results: Sequence[Mapping[str, object]]) -> int:
    """The exit status: 1 if a request of any of the results failed."""
    return 1 if any(result["failed"] for result in results) else 0
