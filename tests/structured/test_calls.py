"""A form, or calls in its place: what the grammar takes and what it does not."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest
from tokenizers import AddedToken

from inference_server.generation.token_texts import TokenTexts
from inference_server.structured.calls import form_or_calls
from inference_server.structured.grammars import MAX_GRAMMAR_CHARS, check_grammar, library_grammar
from inference_server.types import GrammarSpec
from tests.generation.tokenizers import SPECIALS, byte_level

BYTES = llguidance.LLTokenizer("byte")
DAYS = {"type": "array", "items": {"type": "string", "format": "date"}}
SCHEMA = {
    "type": "object",
    "properties": {"ü": {"$ref": "#/$defs/days"}, "s": {"type": "string", "format": "path"}},
    "required": ["ü"],
    "additionalProperties": False,
    "$defs": {"days": DAYS},
}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": {"y": 2}}}\n</tool_call>'


def spec_of(schema: object) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(schema), "response_format")


def grammar(
    schema: object = SCHEMA,
    *,
    allows_several: bool = True,
    marks: tuple[str | int, str | int] = ("<tool_call>", "</tool_call>"),
) -> GrammarSpec:
    found = form_or_calls(spec_of(schema), {"f", "g.h-1"}, marks=marks, allows_several=allows_several)
    assert found is not None
    return found


def takes(spec: GrammarSpec, text: str) -> bool:
    matcher = llguidance.LLMatcher(BYTES, library_grammar(spec))
    tokens = BYTES.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ('{"ü": ["2024-02-29"]}', True),
        ('{"ü": [], "s": "<tool_call>"}', True),
        ('{"ü":[]}', False),  # written as json.dumps writes it, as without tools
        ('{"ü": ["2023-02-29"]}', False),
        ("{}", False),
        (CALL, True),
        (CALL.replace("\n", ""), True),
        (f"{CALL}\n{CALL}", True),
        (CALL.replace('"f"', '"g.h-1"'), True),
        (CALL.replace('"f"', '"nobody"'), False),
        (CALL.replace('{"x": {"y": 2}}', "[1]"), False),
        (f'{{"ü": []}}{CALL}', False),
        (f"Well. {CALL}", False),
    ],
)
def test_an_answer_is_the_form_or_calls(text: str, is_taken: bool) -> None:
    assert takes(grammar(), text) is is_taken


def test_several_calls_are_one_too_many_where_one_is_allowed() -> None:
    assert takes(grammar(allows_several=False), CALL)
    assert not takes(grammar(allows_several=False), f"{CALL}\n{CALL}")


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"type": "string", "pattern": r'a"\n\{\}%'}, SCHEMA]
)
def test_it_is_right_where_the_form_is(schema: dict[str, Any]) -> None:
    check_grammar(spec_of(schema))
    check_grammar(grammar(schema))


def test_marks_may_be_tokens_of_their_own() -> None:
    """As in Qwen's vocabularies, where the model writes them so."""
    added = [AddedToken(mark, special=False, normalized=False) for mark in ("<tool_call>", "</tool_call>")]
    tokenizer = byte_level(tuple(added))
    texts = TokenTexts(tokenizer)
    marks = texts.plain_added("<tool_call>"), texts.plain_added("</tool_call>")
    assert None not in marks
    assert texts.plain_added(SPECIALS[0]) is None
    library_tokenizer = llguidance.LLTokenizer(tokenizer.to_str(), n_vocab=tokenizer.get_vocab_size())
    spec = grammar(marks=marks)  # type: ignore[arg-type]
    for text in (f"{CALL}\n{CALL}", '{"ü": [], "s": "x"}'):
        matcher = llguidance.LLMatcher(library_tokenizer, library_grammar(spec))
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert (marks[0] in tokens) is text.startswith("<")
        assert matcher.try_consume_tokens(tokens) == len(tokens)
        assert matcher.is_accepting()


def test_some_forms_are_left_as_they_are() -> None:
    long = spec_of({"type": "string", "description": "x" * (MAX_GRAMMAR_CHARS - 100)})
    for form in (GrammarSpec("regex", "a+", "guided_regex"), spec_of(True), long):
        assert form_or_calls(form, {"f"}, marks=("<", ">"), allows_several=True) is None
