"""Which dates an answer in a JSON schema's `date` and `date-time` format may hold: those of the calendar."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.structured.dates import with_calendar_dates
from inference_server.structured.grammars import library_grammar
from inference_server.types import GrammarSpec

BYTES = llguidance.LLTokenizer("byte")
NO_DATES = ("0000-01-22", "2023-02-29", "1900-02-29", "2024-02-30", "2024-04-31", "2024-13-01", "2024-00-10")


def is_an_answer(schema: dict[str, Any], value: object) -> bool:
    grammar = library_grammar(GrammarSpec("json_schema", json.dumps(schema), "response_format"))
    matcher = llguidance.LLMatcher(BYTES, grammar)
    tokens = BYTES.tokenize_str(json.dumps(value))
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@given(st.dates())
def test_every_date_that_python_knows_can_be_written(day: date) -> None:
    assert is_an_answer({"type": "string", "format": "date"}, day.isoformat())


@pytest.mark.parametrize("text", NO_DATES)
def test_a_date_that_is_in_no_calendar_cannot(text: str) -> None:
    assert not is_an_answer({"type": "string", "format": "date"}, text)
    assert not is_an_answer({"type": "string", "format": "date-time"}, f"{text}T00:00:00Z")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"format": "date", "type": ["string", "null"]}}, "required": ["a"]},
        {"$defs": {"d": {"format": "date"}}, "properties": {"a": {"$ref": "#/$defs/d"}}, "required": ["a"]},
        {"additionalProperties": {"anyOf": [{"type": "string", "format": "date"}]}},
    ],
)
def test_it_holds_wherever_a_schema_stands(schema: dict[str, Any]) -> None:
    assert is_an_answer({"type": "object", **schema}, {"a": "2024-02-29"})
    assert not is_an_answer({"type": "object", **schema}, {"a": "2023-02-29"})


def test_what_only_looks_like_a_schema_is_left_as_it_is() -> None:
    data = {"enum": [{"format": "date"}], "properties": {"format": {"const": {"format": "date"}}}}
    assert with_calendar_dates(data) == data


def test_other_patterns_still_hold_beside_it() -> None:
    schema = {"type": "string", "format": "date", "pattern": "^2024", "allOf": [{"pattern": "1$"}]}
    assert is_an_answer(schema, "2024-03-01")
    assert not is_an_answer(schema, "2024-03-02")
    assert not is_an_answer(schema, "2023-03-01")
