"""Deltas to text: whole characters only, nothing lost, the ending token is no text."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.text_stream import TextStream
from inference_server.types import FinishReason, TokenDelta


def deltas_of(ids: list[int], reason: FinishReason) -> list[TokenDelta]:
    last = len(ids) - 1
    return [
        TokenDelta(
            request_id="r",
            token_ids=(token,),
            finish_reason=reason if index == last else None,
            num_cached_tokens=16 if index == 0 else 0,
        )
        for index, token in enumerate(ids)
    ]


@given(text=st.text(min_size=1, max_size=40).filter(lambda t: "<|" not in t))
def test_every_character_arrives_once(folder: Path, text: str) -> None:
    template = PromptTemplate(folder)
    ids = template.encode_text(text)
    stream = TextStream(template.tokenizer, template.encode_text("prompt:"), ())
    pieces = [stream.feed(delta) for delta in deltas_of(ids, FinishReason.LENGTH)]
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces[:-1])
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == len(ids)
    assert pieces[-1].usage.cached_tokens == 16


def test_the_token_that_ends_the_answer_is_no_text(folder: Path) -> None:
    template = PromptTemplate(folder)
    ids = [*template.encode_text("fox"), *template.encode_text("!")]
    stream = TextStream(template.tokenizer, [1], ())
    pieces = [stream.feed(delta) for delta in deltas_of(ids, FinishReason.STOP)]
    assert "".join(piece.text for piece in pieces) == "fox"


def test_an_unfinished_character_at_the_end_is_replaced_not_dropped(folder: Path) -> None:
    template = PromptTemplate(folder)
    ids = template.encode_text("é")[:1]
    stream = TextStream(template.tokenizer, [1], ())
    assert [stream.feed(delta) for delta in deltas_of(ids, FinishReason.LENGTH)][-1].text == "\ufffd"


def test_a_stop_string_ends_the_stream_before_the_worker_does(folder: Path) -> None:
    template = PromptTemplate(folder)
    stream = TextStream(template.tokenizer, [1], ["over"])
    pieces = []
    for delta in deltas_of(template.encode_text("jumps over the dog"), FinishReason.LENGTH):
        pieces.append(stream.feed(delta))
        if pieces[-1].finish_reason is not None:
            break
    assert "".join(piece.text for piece in pieces) == "jumps "
    assert pieces[-1].finish_reason is FinishReason.STOP
