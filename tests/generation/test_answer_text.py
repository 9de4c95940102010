"""An answer's text is what its tokens say up to the first stop string, in whatever pieces they come."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from inference_server.generation.answer_text import AnswerText
from inference_server.generation.detokenizer import Detokenizer
from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.scores import ScoredToken, ScoreTrack
from inference_server.generation.stopping import StopStrings
from inference_server.types import TokenScore
from tests.generation.tokenizers import byte_level, write_folder

TEXTS = st.text(alphabet="abcé日😀 ", max_size=30)
STOPS = st.lists(st.text(alphabet="abcé日 ", min_size=1, max_size=4), max_size=4)


@functools.cache
def template() -> PromptTemplate:
    with TemporaryDirectory() as folder:
        return PromptTemplate(write_folder(Path(folder), byte_level()))


def first_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """Where the stop string that is complete first begins and ends, by its definition."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts), end
    return None


def spoken(
    token_ids: list[int], stops: list[str], cuts: list[int], *, include: bool = False
) -> tuple[str, list[ScoredToken]]:
    """The answer's text and scored tokens, fed in pieces of the given sizes."""
    answer = AnswerText(
        Detokenizer(template().tokenizer, ()),
        StopStrings(stops, include=include),
        ScoreTrack(template().texts),
    )
    text, scored, first = "", [], 0
    for size in [*cuts, len(token_ids)]:
        piece = token_ids[first : first + size]
        first += size
        said, _ = answer.feed(piece, [TokenScore(-0.5, 1)] * len(piece))
        text += said
        scored += answer.scored(finished=False)
        if answer.stop is not None:
            break
        assert all(token.start < len(text) for token in scored)
    text += answer.finish()
    return text, [*scored, *answer.scored(finished=True)]


@given(TEXTS, STOPS, st.lists(st.integers(0, 5), max_size=10), st.booleans())
def test_text_never_leaks_past_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    token_ids = template().encode_text(text)
    found = first_stop(text, stops)
    expected = text if found is None else text[: found[1] if include else found[0]]
    assert spoken(token_ids, stops, cuts, include=include)[0] == expected


@given(TEXTS, STOPS, st.lists(st.integers(0, 5), max_size=10))
def test_scored_tokens_are_those_that_begin_in_the_text(text: str, stops: list[str], cuts: list[int]) -> None:
    token_ids = template().encode_text(text)
    said, scored = spoken(token_ids, stops, cuts)
    assert [token.own.token_id for token in scored] == token_ids[: len(scored)]
    assert b"".join(token.own.raw for token in scored).startswith(said.encode())
    if said == text:
        assert b"".join(token.own.raw for token in scored) == text.encode()
    else:
        assert all(token.start < len(said) for token in scored)
    assert [token.start for token in scored] == sorted(token.start for token in scored)
    for number, token in enumerate(scored):
        before = b"".join(template().texts.raw(other) for other in token_ids[:number])
        with contextlib.suppress(UnicodeDecodeError):  # it begins inside a character
            assert token.start == len(before.decode())


@given(TEXTS, STOPS, st.lists(st.integers(0, 5), max_size=10))
def test_the_pieces_in_which_tokens_come_make_no_difference(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    token_ids = template().encode_text(text)
    assert spoken(token_ids, stops, cuts) == spoken(token_ids, stops, [])


@given(TEXTS, STOPS, st.lists(st.integers(1, 5), max_size=10))
def test_stop_strings_do_not_care_how_a_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    whole, pieces = StopStrings(stops), StopStrings(stops)
    expected = whole.feed(text) + whole.flush()
    said, first = "", 0
    for size in [*cuts, len(text)]:
        said += pieces.feed(text[first : first + size])
        first += size
    assert (said + pieces.flush(), pieces.found) == (expected, whole.found)
