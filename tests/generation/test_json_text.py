"""JSON of models and clients: whatever is read can be written again as UTF-8, and means the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.generation.json_text import MAX_DEPTH, parse_json, write_json

TEXTS = st.text(st.characters(codec=None), max_size=8)  # halves of characters, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_what_is_read_can_be_written(value: object) -> None:
    try:
        parsed = parse_json(json.dumps(value))
    except ValueError:
        assert any(word in json.dumps(value) for word in ("NaN", "Infinity"))
        return
    text = write_json(parsed)
    assert json.loads(text.encode()) == parsed
    if json.dumps(value, ensure_ascii=False).isprintable():
        assert parsed == value


def test_depth_counts_and_brackets_in_strings_do_not() -> None:
    assert parse_json('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)
    assert parse_json(json.dumps(['[{\\"' * 100] * 100 + [[[]]] * 100))
    with pytest.raises(ValueError, match="nested more than 64 levels"):
        parse_json('{"a":[' * 33 + "]}" * 33)


@pytest.mark.parametrize("text", ["{", "NaN", "[1e999]", "-Infinity", "[" * 100_000, "1" * 5000, ""])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
