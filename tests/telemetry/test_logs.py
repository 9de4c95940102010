"""A log line is one line, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from inference_server.telemetry.logs import JsonFormatter, PlainFormatter


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("name", logging.INFO, "path", 1, "%s", (message,), None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("forged", ["a\nINFO forged", "a\r\nb", "a\x1b[2Jb", "a\u2028b", "a\x85b"])
@pytest.mark.parametrize("formatter", [PlainFormatter(), JsonFormatter()])
def test_no_text_can_forge_a_second_line(formatter: logging.Formatter, forged: str) -> None:
    line = formatter.format(record(forged))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


@pytest.mark.parametrize("forged", ["a\nb", "a\u2028b", "a\x85b", 'a"b\\'])
def test_a_json_line_gives_back_what_was_said(forged: str) -> None:
    assert json.loads(JsonFormatter().format(record(forged)))["message"] == forged


def test_a_plain_line_ends_with_its_fields() -> None:
    line = PlainFormatter().format(record("hello", fields={"model": "m\n", "ms": 3}))
    assert line.endswith("hello model=m\\n ms=3")


def test_json_lines_carry_their_fields() -> None:
    line = json.loads(JsonFormatter().format(record("hello", fields={"model": "m", "ms": 3})))
    assert (line["message"], line["level"], line["model"], line["ms"]) == ("hello", "info", "m", 3)


def test_a_traceback_follows_its_line_and_cannot_pass_for_another() -> None:
    try:
        raise ValueError("boom\n12:00:00 INFO forged: line\x1b[2J")
    except ValueError:
        made = record("it failed", exc_text=None)
        made.exc_info = sys.exc_info()
    first, *trace = PlainFormatter().format(made).split("\n")
    assert first.endswith("it failed")
    assert trace
    assert all(line.startswith("    | ") and "\x1b" not in line for line in trace)
