"""Parsers of answers: the same events however the text is cut, and what only looks like a call stays text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.generation.parsing.calls import ArgumentsParser, CallListParser
from inference_server.generation.parsing.events import (
    AnswerParser,
    CallArguments,
    CallBegin,
    Content,
    Event,
    Reasoning,
    joined,
)
from inference_server.generation.parsing.hermes import HermesParser
from inference_server.generation.parsing.plain import PlainParser
from inference_server.generation.parsing.think import ThinkParser
from inference_server.generation.parsing.whole import LlamaParser, MistralParser

NAMES = frozenset({"get_weather", "add"})
ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, "}"]}}'
ARGUMENTS = '{"a": 1, "b": [2, "}"]}'
ADDED = [CallBegin(0, "add"), CallArguments(0, ARGUMENTS)]
ADDED_AGAIN = [*ADDED, CallBegin(1, "add"), CallArguments(1, ARGUMENTS)]


def parsed(parser: AnswerParser, pieces: Sequence[str]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    return joined([*events, *parser.finish()])


def hermes() -> AnswerParser:
    return HermesParser(NAMES)


def think() -> AnswerParser:
    return ThinkParser(PlainParser(), is_inside=False)


def thinking() -> AnswerParser:
    return ThinkParser(HermesParser(NAMES), is_inside=True)


CASES: list[tuple[Callable[[], AnswerParser], str, list[Event]]] = [
    (PlainParser, "Hello <think> {", [Content("Hello <think> {")]),
    (hermes, "Hello.", [Content("Hello.")]),
    (hermes, "Hello.\n ", [Content("Hello.\n ")]),
    (hermes, f"<tool_call>\n{ADD}\n</tool_call>", ADDED),
    (hermes, f"Let me see.\n<tool_call>{ADD}</tool_call>\n", [Content("Let me see."), *ADDED]),
    (hermes, f"<tool_call>{ADD}", ADDED),
    (
        hermes,
        f'<tool_call>{ADD}</tool_call>\n<tool_call>{{"name": "get_weather", "arguments": {{}}}}</tool_call>',
        [*ADDED, CallBegin(1, "get_weather"), CallArguments(1, "{}")],
    ),
    (hermes, "<tool_call>no json</tool_call> x", [Content("<tool_call>no json</tool_call> x")]),
    (
        hermes,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [Content('<tool_call>{"name": "rm", "arguments": {}}</tool_call>')],
    ),
    (
        hermes,
        '<tool_call>{"name": "add", "arguments": {"a": "\\ud800"}}</tool_call>',
        [CallBegin(0, "add"), CallArguments(0, '{"a": "\ufffd"}')],
    ),
    (
        hermes,
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        [Content('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>')],
    ),
    (
        hermes,
        '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>',
        [Content('<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>')],
    ),
    (hermes, '<tool_call>{"name": []}</tool_call>', [Content('<tool_call>{"name": []}</tool_call>')]),
    (
        hermes,
        f"<tool_call>{ADD}</tool_call>\n It is  done. \n",
        [*ADDED, Content("It is  done.")],
    ),
    (lambda: MistralParser(NAMES), " [TOOL_CALLS] what", [Content(" [TOOL_CALLS] what")]),
    (lambda: MistralParser(NAMES), f" [TOOL_CALLS] [{ADD}]", ADDED),
    (hermes, "a <tool_ca b", [Content("a <tool_ca b")]),
    (think, "<think>\nHm.\n</think>\n\nYes.", [Reasoning("Hm."), Content("Yes.")]),
    (think, "Yes. <think>no</think>", [Content("Yes. <think>no</think>")]),
    (think, "<think>for ever", [Reasoning("for ever")]),
    (think, "<think></think>x", [Content("x")]),
    (think, "<thin", [Content("<thin")]),
    (
        thinking,
        f"I must add.\n\n more</think><tool_call>{ADD}</tool_call>",
        [Reasoning("I must add.\n\n more"), *ADDED],
    ),
    (lambda: LlamaParser(NAMES), '{"name": "add", "parameters": {"a": 1, "b": [2, "}"]}}', ADDED),
    (lambda: LlamaParser(NAMES), f"<|python_tag|>{ADD}; {ADD}", ADDED_AGAIN),
    (lambda: LlamaParser(NAMES), '{"color": "red"}', [Content('{"color": "red"}')]),
    (lambda: LlamaParser(NAMES), "  It is {not} json", [Content("  It is {not} json")]),
    (lambda: MistralParser(NAMES), f"[TOOL_CALLS] [{ADD}]", ADDED),
    (lambda: MistralParser(NAMES), f"Well.[TOOL_CALLS]add[ARGS]{ARGUMENTS}", [Content("Well."), *ADDED]),
    (lambda: MistralParser(NAMES), "[TOOL_CALLS] what", [Content("[TOOL_CALLS] what")]),
    (lambda: MistralParser(NAMES), "a list [1, 2]", [Content("a list [1, 2]")]),
    (lambda: ArgumentsParser("add"), '{"a": 1, "b": [2, "}"]}', ADDED),
    (CallListParser, f"[{ADD}]", ADDED),
    (
        CallListParser,
        f'[{ADD}, {{"name": "get_weather", "arguments": {{"q": "\\"{{["}}}}]',
        [*ADDED, CallBegin(1, "get_weather"), CallArguments(1, '{"q": "\\"{["}')],
    ),
    (CallListParser, '[{"name": "add", "argu', []),
    (
        CallListParser,
        '[{"name": "add", "arguments": {"a": "x',
        [CallBegin(0, "add"), CallArguments(0, '{"a": "x')],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text", "expected"), CASES)
def test_whole_and_letter_by_letter(
    make: Callable[[], AnswerParser], text: str, expected: list[Event]
) -> None:
    assert parsed(make(), [text]) == expected
    assert parsed(make(), list(text)) == expected


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 120), max_size=8))
def test_the_cut_does_not_matter(
    case: tuple[Callable[[], AnswerParser], str, list[Event]], cuts: list[int]
) -> None:
    make, text, expected = case
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    assert parsed(make(), pieces) == expected


MAKERS = [hermes, think, thinking, lambda: LlamaParser(NAMES), lambda: MistralParser(NAMES)]
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<", "t"]
PIECES = st.sampled_from([*MARKS, "{", "}", " ", "\n", "a", ADD])
VALUES = st.recursive(st.none() | st.text(max_size=9) | st.integers(), st.lists, max_leaves=4)
OBJECTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=3)


@given(make=st.sampled_from(MAKERS), pieces=st.lists(PIECES, max_size=12))
def test_any_text_gives_the_same_events_in_pieces_as_whole(
    make: Callable[[], AnswerParser], pieces: list[str]
) -> None:
    assert (
        parsed(make(), pieces) == parsed(make(), ["".join(pieces)]) == parsed(make(), list("".join(pieces)))
    )


@given(
    calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), OBJECTS), min_size=1, max_size=4),
    size=st.integers(1, 30),
)
def test_a_list_of_calls_comes_out_as_it_went_in(
    calls: list[tuple[str, dict[str, object]]], size: int
) -> None:
    text = json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])
    events = parsed(CallListParser(), [text[start : start + size] for start in range(0, len(text), size)])
    names = [event.name for event in events if isinstance(event, CallBegin)]
    arguments = [json.loads(event.text) for event in events if isinstance(event, CallArguments)]
    assert list(zip(names, arguments, strict=True)) == calls
