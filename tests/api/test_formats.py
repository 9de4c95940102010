"""Fields that ask for a form: what they come to, and what is refused before a model is asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from inference_server.types import GrammarSpec
from tests.api.server import Server

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
OBJECT = '{"type": "object"}'


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            GrammarSpec("json_schema", OBJECT, "response_format"),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            GrammarSpec("json_schema", TEXT, "response_format"),
        ),
        ({"guided_json": SCHEMA}, GrammarSpec("json_schema", TEXT, "guided_json")),
        ({"guided_json": TEXT}, GrammarSpec("json_schema", TEXT, "guided_json")),
        ({"guided_regex": "a+"}, GrammarSpec("regex", "a+", "guided_regex")),
        ({"guided_choice": ["x", "y"]}, GrammarSpec("choice", '["x","y"]', "guided_choice")),
        ({"guided_grammar": 'start: "x"'}, GrammarSpec("grammar", 'start: "x"', "guided_grammar")),
        (
            {"structured_outputs": {"regex": "a|b"}},
            GrammarSpec("regex", "a|b", "structured_outputs.regex"),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            GrammarSpec("json_schema", OBJECT, "structured_outputs.json_object"),
        ),
        ({"structured_outputs": {}}, None),
    ],
)
def test_the_worker_is_asked_for_the_form(
    tmp_path: Path, fields: dict[str, Any], expected: GrammarSpec | None
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        assert (await server.chat(**fields)).status_code == 200
        assert (await server.complete(**fields)).status_code == 200
        assert [seen.sampling.grammar for seen in server.worker.seen] == [expected, expected]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "Invalid"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, None, "Missing"),
        ({"guided_json": "{no json"}, "guided_json", "JSON schema cannot be used"),
        ({"guided_json": {"type": "nothing"}}, "guided_json", "JSON schema cannot be used"),
        ({"guided_json": {"not": {"type": "string"}}}, "guided_json", "not"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "expression cannot be used"),
        ({"guided_regex": "(("}, "guided_regex", "expression cannot be used"),
        ({"guided_choice": []}, "guided_choice", "Invalid"),
        ({"guided_choice": [""]}, None, "Invalid"),
        ({"guided_grammar": "start: x"}, "guided_grammar", "grammar cannot be used"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "send one"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs.regex",
            "send one",
        ),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "contradicts guided_regex"),
        ({"guided_regex": "a", "min_tokens": 2}, "min_tokens", "contradicts"),
        ({"guided_regex": "a", "allowed_token_ids": [1]}, "allowed_token_ids", "contradicts"),
    ],
)
def test_what_cannot_be_is_refused_by_name_before_the_worker_hears_of_it(
    tmp_path: Path, fields: dict[str, Any], param: str | None, words: str
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        worker = await server.warm()
        response = await server.chat(**fields)
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (400, "invalid_request_error")
        assert param is None or error["param"] == param
        assert words in error["message"]
        assert len(error["message"]) < 500
        assert worker.seen == []

    asyncio.run(scenario())
