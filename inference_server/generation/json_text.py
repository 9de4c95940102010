"""JSON that somebody else wrote as text: what is read from it can always be written again, as UTF-8."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str) -> Any:
    """The value. Halves of a character (a lone `\\ud800`) are read as U+FFFD.

    Raises:
        ValueError: it is no JSON, holds NaN or a number without an end, or is nested too deeply.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        written = write_json(value)
        written.encode()
    except UnicodeEncodeError:
        return json.loads(written.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def write_json(value: Any) -> str:
    """One line, every character as itself. Raises ValueError for a number that JSON cannot say."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _refuse(constant: str) -> Any:
    raise ValueError(f"JSON has no {constant}")
