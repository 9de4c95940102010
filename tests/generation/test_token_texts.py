"""Single tokens as bytes and text: joined, they are what was encoded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference_server.generation.token_texts import TokenTexts
from tests.demo import demo_folder
from tests.generation.tokenizers import SPECIALS, byte_level, metaspace

BYTE_LEVEL, METASPACE = byte_level(), metaspace()


@given(st.text(max_size=40))
def test_byte_level_tokens_are_the_texts_bytes(text: str) -> None:
    texts = TokenTexts(BYTE_LEVEL)
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    if not any(special in text for special in SPECIALS):
        assert b"".join(texts.raw(token) for token in ids) == text.encode()


@given(st.text(alphabet="abc é日", max_size=20))
def test_metaspace_tokens_are_the_texts_bytes_after_a_space(text: str) -> None:
    ids = METASPACE.encode(text, add_special_tokens=False).ids
    raw = b"".join(TokenTexts(METASPACE).raw(token) for token in ids)
    assert raw == (f" {text}".encode() if text else b"")


@pytest.mark.parametrize(
    ("tokenizer", "token", "text"),
    [
        (BYTE_LEVEL, "<|im_end|>", "<|im_end|>"),
        (BYTE_LEVEL, "Ġ", " "),
        (BYTE_LEVEL, "Ã", "\\xc3"),
        (BYTE_LEVEL, "Ċ", "\n"),
        (METASPACE, "<0xE6>", "\\xe6"),
        (METASPACE, "<0x41>", "A"),
        (METASPACE, "▁", " "),
        (METASPACE, "</s>", "</s>"),
    ],
)
def test_a_tokens_text(tokenizer: Tokenizer, token: str, text: str) -> None:
    texts = TokenTexts(tokenizer)
    number = tokenizer.token_to_id(token)
    assert (texts.text(number), texts.spelling(number)) == (text, token)


def test_an_id_beyond_the_vocabulary_has_no_text() -> None:
    assert TokenTexts(BYTE_LEVEL).text(10**6) == ""


@pytest.mark.model
def test_every_token_of_the_demo_model_has_its_bytes() -> None:
    tokenizer = Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))
    texts = TokenTexts(tokenizer)
    text = "The naïve fox: 日本語 😀\n\tdef f(x): return x"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(texts.raw(token) for token in ids) == text.encode()
    for token in range(tokenizer.get_vocab_size()):
        raw, decoded = texts.raw(token), tokenizer.decode([token], skip_special_tokens=False)
        assert "�" in decoded or raw.decode() == decoded
