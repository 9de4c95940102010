"""JSON that somebody else wrote as text: what is read from it can always be written again, as UTF-8."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 64  # of whatever a client sends: who goes through it by recursion has a stack for so much
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")


def parse_json(text: str) -> Any:
    """The value. Halves of a character (a lone `\\ud800`) are read as U+FFFD.

    Raises:
        ValueError: it is no JSON, holds NaN or a number without an end, or is nested too deeply.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        if is_deeper(text.encode("utf-8", "surrogatepass"), MAX_DEPTH):
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
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


def is_deeper(text: bytes, max_depth: int) -> bool:
    """Whether valid JSON is nested more than so many levels deep."""
    if text.count(b"[") + text.count(b"{") <= max_depth:
        return False
    brackets = _STRING.sub(b"", text).translate(_AS_SQUARE, _NOT_BRACKETS)
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"")  # one level, the innermost, in one pass
    return bool(brackets)


def _refuse(constant: str) -> Any:
    raise ValueError(f"JSON has no {constant}")
