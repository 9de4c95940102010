"""What says nothing of an answer is no reason to refuse a schema; what does is never left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_server.errors import InvalidRequest
from inference_server.structured.grammars import check_grammar
from inference_server.structured.idle_words import without_idle_words
from inference_server.types import GrammarSpec


def check(schema: dict[str, Any]) -> None:
    check_grammar(GrammarSpec("json_schema", json.dumps(schema), "response_format"))


@pytest.mark.parametrize("form", ["path", "binary", "password", "uri-reference", "regex", "double", "x"])
def test_a_format_that_is_not_known_is_an_annotation(form: str) -> None:
    string = {"type": "string", "format": form, "minLength": 1}
    schema = {"type": "object", "properties": {"a": string}, "$defs": {"b": {"anyOf": [string]}}}
    check(schema)
    plain = {"type": "string", "minLength": 1}
    assert without_idle_words(schema) == {
        "type": "object", "properties": {"a": plain}, "$defs": {"b": {"anyOf": [plain]}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "form", ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"]
)
def test_a_format_that_is_known_stays(form: str) -> None:
    schema = {"type": "string", "format": form}
    assert without_idle_words(schema) == schema
    check(schema)


@pytest.mark.parametrize("names", [{"type": "string"}, {"type": "string", "format": "x"}, {}, True])
def test_names_of_properties_are_strings_anyhow(names: Any) -> None:
    record = {"type": "object", "additionalProperties": {"type": "number"}}
    schema = {"type": "object", "properties": {"a": {**record, "propertyNames": names}}}
    check(schema)
    assert without_idle_words(schema)["properties"]["a"] == record


@pytest.mark.parametrize("names", [{"pattern": "^a"}, {"type": "string", "maxLength": 2}, False])
def test_names_that_are_held_to_something_are_still_refused(names: Any) -> None:
    with pytest.raises(InvalidRequest, match="propertyNames"):
        check({"type": "object", "propertyNames": names})


def test_data_that_looks_the_same_is_left_alone() -> None:
    data = {"format": "x", "propertyNames": {}}
    schema = {"type": "object", "properties": {"format": {"const": data}, "propertyNames": {"enum": [data]}}}
    assert without_idle_words(schema) == schema
