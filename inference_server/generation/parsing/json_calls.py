"""Calls that a model writes as JSON objects, in the spellings that the model families use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inference_server.generation.json_text import parse_json, write_json
from inference_server.generation.parsing.events import CallArguments, CallBegin, Event

_MAX_CALLS = 128


@dataclass(frozen=True, slots=True)
class Call:
    """A tool and the JSON text of its arguments."""

    name: str
    arguments: str


def call_of(value: Any, names: frozenset[str]) -> Call | None:
    """The call of a known tool that a JSON object is: `arguments` or `parameters` beside `name`."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or name not in names:
        return None
    try:
        arguments = parse_json(arguments if isinstance(arguments, str) else json.dumps(arguments))
    except (ValueError, RecursionError):
        return None
    return Call(name, write_json(arguments)) if isinstance(arguments, dict) else None


def calls_of(text: str, names: frozenset[str]) -> list[Call] | None:
    """The calls that a whole text is: one object, a list of them, or several with `;` or nothing between."""
    values: list[Any] = []
    rest = text.strip()
    decoder = json.JSONDecoder()
    while rest and len(values) < _MAX_CALLS:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        values += value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    calls = [call_of(value, names) for value in values]
    return [call for call in calls if call is not None] if calls and all(calls) else None


def events_of(calls: Iterable[Call], first: int = 0) -> list[Event]:
    """The events of whole calls, counted from `first`."""
    events: list[Event] = []
    for index, call in enumerate(calls, first):
        events += [CallBegin(index, call.name), CallArguments(index, call.arguments)]
    return events
