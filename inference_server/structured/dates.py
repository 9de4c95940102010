"""Dates that a calendar has, for JSON schemas whose format is a date.

The grammar library's own idea of a date allows February 29 in every year, and the year 0, which neither a
validator nor most languages' date types take. Each schema with such a format gets a pattern beside it.
"""

from __future__ import annotations

from typing import Any

from inference_server.structured.json_schema import map_schemas

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # 0001 to 9999
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_LONG_MONTHS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTHS = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_DAY = f"({_LONG_MONTHS}|{_SHORT_MONTHS}|02-(0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"({_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_PATTERNS = {"date": f"^{_DATE}$", "date-time": f"^{_DATE}[Tt]"}


def with_calendar_dates(schema: Any) -> Any:
    """The schema, each `format: date` and `date-time` in it held to the calendar; never changes its argument.

    Raises RecursionError for a schema nested as deeply as Python's stack.
    """
    return map_schemas(schema, _held_to_the_calendar)


def _held_to_the_calendar(schema: dict[str, Any]) -> dict[str, Any]:
    form = schema.get("format")
    pattern = _PATTERNS.get(form) if isinstance(form, str) else None
    if pattern is None:
        return schema
    others = schema.get("allOf")
    return {**schema, "allOf": [*(others if isinstance(others, list) else []), {"pattern": pattern}]}
