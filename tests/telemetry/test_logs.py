"""A log line is one line, whatever is in it."""

from __future__ import annotations

import json
import logging

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
    assert len(line.splitlines()) == 1 or isinstance(formatter, JsonFormatter)
    assert "\n" not in line
    assert "\x1b" not in line


def test_json_lines_carry_their_fields() -> None:
    line = json.loads(JsonFormatter().format(record("hello", fields={"model": "m", "ms": 3})))
    assert (line["message"], line["level"], line["model"], line["ms"]) == ("hello", "info", "m", 3)
