"""The kinds of value a key can take: text, number, size, duration, choice and so on. It knows no key.

A kind reads a value from YAML, from an environment variable or from a flag alike: text that spells a
number or a truth value is accepted for one.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.config.units import parse_bytes, parse_duration, parse_share

_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
Schema = Mapping[str, object]
DURATION_SCHEMA: Schema = {"type": ["string", "number"], "minimum": 0, "examples": ["30s", "10m", 600]}


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of value: how to read it (ValueError says what is wrong), its schema, its name in help."""

    parse: Callable[[object], Any]
    schema: Schema
    metavar: str


def text(metavar: str, pattern: str | None = None, expected: str = "a non-empty text") -> Kind:
    """Text; with a pattern, the whole of it must match."""

    def parse(value: object) -> str:
        if isinstance(value, bool | int | float):
            raise ValueError(f"expected text, got {shown(value)}: put it in quotes")
        if not isinstance(value, str) or not value or not value.isprintable():
            raise ValueError(f"expected {expected}, got {shown(value)}")
        if pattern is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"expected {expected}, got {shown(value)}")
        return value

    schema: dict[str, object] = {"type": "string", "minLength": 1}
    return Kind(parse, schema | ({"pattern": f"^(?:{pattern})$"} if pattern else {}), metavar)


def boolean() -> Kind:
    """true or false; in the environment also 1, 0, yes, no, on, off."""

    def parse(value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = value.strip().lower() if isinstance(value, str) else ""
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise ValueError(f"expected true or false, got {shown(value)}")

    return Kind(parse, {"type": "boolean"}, "BOOL")


def integer(minimum: int, maximum: int) -> Kind:
    """A whole number in a range."""

    def parse(value: object) -> int:
        number = value
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
            number = int(value)
        if isinstance(number, bool) or not isinstance(number, int) or not minimum <= number <= maximum:
            raise ValueError(f"expected a whole number from {minimum} to {maximum}, got {shown(value)}")
        return number

    return Kind(parse, {"type": "integer", "minimum": minimum, "maximum": maximum}, "N")


def number(minimum: float, maximum: float, *, above: bool = False) -> Kind:
    """A finite number in a range; `above`: the minimum itself is excluded."""
    bounds = f"{'above' if above else 'from'} {minimum:g} {'and at most' if above else 'to'} {maximum:g}"

    def parse(value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_number = is_number or (isinstance(value, str) and _FLOAT.fullmatch(value.strip()) is not None)
        found = float(value) if is_number else math.nan  # type: ignore[arg-type]
        if not minimum <= found <= maximum or (above and found == minimum):
            raise ValueError(f"expected a number {bounds}, got {shown(value)}")
        return found

    lower = "exclusiveMinimum" if above else "minimum"
    return Kind(parse, {"type": "number", lower: minimum, "maximum": maximum}, "X")


def choice(*names: str) -> Kind:
    """One of a few words."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise ValueError(f"expected one of {', '.join(names)}, got {shown(value)}{hint}")

    return Kind(parse, {"enum": list(names)}, "{" + ",".join(names) + "}")


def size(minimum: int = 1) -> Kind:
    """Bytes."""

    def parse(value: object) -> int:
        found = parse_bytes(value)  # type: ignore[arg-type]  # it refuses what it cannot read
        if found < minimum:
            raise ValueError(f"expected at least {minimum} bytes, got {shown(value)}")
        return found

    return Kind(parse, {"type": ["string", "integer"], "minimum": minimum, "examples": ["8GiB"]}, "SIZE")


def share() -> Kind:
    """A part of the whole."""

    def parse(value: object) -> float:
        return parse_share(value)  # type: ignore[arg-type]

    return Kind(parse, {"type": ["string", "number"], "examples": ["90%", 0.9]}, "SHARE")


def duration(*, zero: bool = False) -> Kind:
    """Seconds, with an end."""

    def parse(value: object) -> float:
        seconds = parse_duration(value)  # type: ignore[arg-type]
        if seconds is None or (seconds == 0 and not zero):
            raise ValueError(
                f"expected a duration such as 30s or 5m{'' if zero else ', above 0'}, got {shown(value)}"
            )
        return seconds

    return Kind(parse, DURATION_SCHEMA, "DURATION")


def names(pattern: str, expected: str) -> Kind:
    """A list of distinct texts."""
    item = text("NAME", pattern, expected)

    def parse(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected a list such as [a, b], got {shown(value)}")
        found = tuple(item.parse(element) for element in value)
        for name in found:
            if found.count(name) > 1:
                raise ValueError(f"{shown(name)} is listed twice")
        return found

    return Kind(parse, {"type": "array", "items": dict(item.schema), "uniqueItems": True}, "NAMES")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely meant."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Empty, or "; did you mean `x`?" to end a message with."""
    candidate = nearest(name, known)
    return f"; did you mean `{candidate}`?" if candidate else ""


def shown(value: object) -> str:
    """A value for a message: quoted, bounded, free of control characters."""
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
