"""Sizes, shares and durations as people write them ("8GiB", "90%", "10m") and back. It knows no settings.

Every parser raises ValueError with a text that completes the sentence "<setting>: …".
"""

from __future__ import annotations

import math
import re

_BYTES_PER_UNIT = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"\d+(?:\.\d+)?"
_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)", re.ASCII)
_SHARE = re.compile(rf"({_NUMBER})\s*%", re.ASCII)
_PLAIN_NUMBER = re.compile(rf"-?{_NUMBER}", re.ASCII)
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)", re.ASCII)
_MAX_BYTES = 2**60
_MAX_DURATION_S = 10 * 365 * 86400.0


def parse_bytes(value: str | int) -> int:
    """A number of bytes: 8GiB, 512MiB, 1.5GiB (powers of 1024), 8GB (powers of 1000), or a plain number.

    Raises:
        ValueError: not a size, negative, or beyond 1 EiB.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _checked_bytes(value, value)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a size such as 8GiB or 512MiB, got {_shown(value)}")
    number, unit = match.groups()
    if unit.lower() not in _BYTES_PER_UNIT:
        raise ValueError(
            f"unknown unit in size {_shown(value)}: write KiB, MiB, GiB, TiB (or KB, MB, GB, TB)"
        )
    return _checked_bytes(float(number) * _BYTES_PER_UNIT[unit.lower()], value)


def parse_share(value: str | float) -> float:
    """A share of something as a fraction: "90%" and 0.9 are both 0.9.

    Raises:
        ValueError: not a share, zero, or more than the whole.
    """
    share = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    elif isinstance(value, str):
        text = value.strip()
        if match := _SHARE.fullmatch(text):
            share = float(match.group(1)) / 100
        elif _PLAIN_NUMBER.fullmatch(text):
            share = float(text)
    if not 0 < share <= 1:
        raise ValueError(f"expected a share such as 90% or 0.9 (above 0, at most 1), got {_shown(value)}")
    return share


def parse_duration(value: str | float) -> float | None:
    """Seconds: 600, "10s", "5m", "1h30m", "250ms". -1 means for ever and gives None.

    Raises:
        ValueError: not a duration, negative other than -1, or longer than ten years.
    """
    seconds = _duration_seconds(value)
    if seconds == -1:
        return None
    if not 0 <= seconds <= _MAX_DURATION_S:
        raise ValueError(f"expected a duration such as 30s, 5m, 1h30m or -1 (for ever), got {_shown(value)}")
    return seconds


def format_bytes(num_bytes: int) -> str:
    """For people: "8 GiB", "1.5 MiB", "17 B"; three significant digits, trailing zeros dropped."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1023.5 or (unit == "GiB" and abs(size) < 1024):
            return f"{_short(size)} {unit}"
        size /= 1024
    return f"{_short(size)} TiB"


def format_duration(seconds: float | None) -> str:
    """For people, in the form that `parse_duration` reads: "10m", "1h30m", "0.5s"; None is "for ever"."""
    if seconds is None:
        return "for ever"
    parts = []
    rest = seconds
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{int(count)}{unit}")
    if rest or not parts:
        parts.append(f"{rest:.6g}s")
    return "".join(parts)


def _checked_bytes(number: float, value: object) -> int:
    if not 0 <= number <= _MAX_BYTES:
        raise ValueError(f"expected a size from 0 to 1 EiB, got {_shown(value)}")
    return int(number)


def _duration_seconds(value: object) -> float:
    """Seconds, or NaN for what is no duration at all."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        return math.nan
    text = value.strip()
    if _PLAIN_NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return math.nan
    return sum(float(n) * _SECONDS_PER_UNIT[unit] for n, unit in _DURATION_PART.findall(text))


def _short(number: float) -> str:
    digits = max(0, 3 - len(str(int(abs(number)))))
    text = f"{number:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
