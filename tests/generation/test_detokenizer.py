"""Text comes out whole, whatever the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference_server.generation.detokenizer import Detokenizer
from tests.generation.tokenizers import byte_level, metaspace

BYTE_LEVEL = byte_level()
METASPACE = metaspace()


def fed(tokenizer: Tokenizer, prompt: list[int], output: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join([detokenizer.feed([token]) for token in output]) + detokenizer.flush()


TEXTS = [
    "Hello there, world.",
    "naïve café",
    "日本語のテキスト",
    "👨‍👩‍👧 family 😀",
    "tabs\tand\n\nnewlines  ",
    "é" * 50,
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(text: str) -> None:
    prompt = BYTE_LEVEL.encode("<|im_start|>assistant\n").ids
    assert fed(BYTE_LEVEL, prompt, BYTE_LEVEL.encode(text).ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, [])
    assert not any("�" in detokenizer.feed([token]) for token in BYTE_LEVEL.encode(text).ids)


def test_special_tokens_give_no_text() -> None:
    ids = BYTE_LEVEL.encode("hello<|im_end|> world").ids
    assert fed(BYTE_LEVEL, [], ids) == "hello world"


def test_an_unfinished_character_comes_out_at_the_end_as_a_replacement() -> None:
    ids = BYTE_LEVEL.encode("ok 🚀").ids[:-1]
    text = fed(BYTE_LEVEL, [], ids)
    assert text.startswith("ok ")
    assert text.endswith("�")


def test_a_character_begun_in_the_prompt_is_finished_in_the_answer() -> None:
    emoji = BYTE_LEVEL.encode("🚀").ids
    assert fed(BYTE_LEVEL, emoji[:-1], [*emoji[-1:], *BYTE_LEVEL.encode(" hello").ids]) == "🚀 hello"


def test_leading_spaces_are_kept_where_the_decoder_strips_them() -> None:
    prompt = METASPACE.encode("the answer").ids
    assert fed(METASPACE, prompt, METASPACE.encode("is yes").ids) == " is yes"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40))
def test_any_tokens_whatever_never_raise_and_agree_with_a_whole_decode(ids: list[int]) -> None:
    text = fed(BYTE_LEVEL, [], ids)
    assert text.replace("�", "") == BYTE_LEVEL.decode(ids).replace("�", "")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, METASPACE.get_vocab_size() - 1), max_size=40))
def test_byte_fallback_tokens_never_raise(ids: list[int]) -> None:
    fed(METASPACE, METASPACE.encode("so").ids, ids)


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_survives(text: str) -> None:
    ids = BYTE_LEVEL.encode(text).ids
    expected = BYTE_LEVEL.decode(ids)
    assert fed(BYTE_LEVEL, [], ids) == expected
