"""Calls that take a whole answer: as JSON objects (Llama 3), or behind a mark (Mistral). Told at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq

from inference_server.generation.json_text import parse_json
from inference_server.generation.parsing.events import Content, Event, partial_end
from inference_server.generation.parsing.json_calls import Call, call_of, calls_of, events_of

PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS, ARGS = "[TOOL_CALLS]", "[ARGS]"
_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\][^\[]*)?\[ARGS\]\s*")


class LlamaParser:
    """An answer that begins with `{` or the python tag may be calls; what is none is text after all."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        self._is_text = False

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        if self._is_text:
            return [Content(text)] if text else ()
        self._held += text
        start = self._held.lstrip()
        if not start or start.startswith(("{", "[", PYTHON_TAG)) or PYTHON_TAG.startswith(start):
            return ()
        self._is_text = True
        return self._rest()

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`."""
        if self._is_text:
            return ()
        calls = calls_of(self._held.lstrip().removeprefix(PYTHON_TAG), self._names)
        return events_of(calls) if calls is not None else self._rest()

    def _rest(self) -> list[Event]:
        held, self._held = self._held, ""
        return _content(held)


class MistralParser:
    """Text, then `[TOOL_CALLS]` and a list of calls, or a name and `[ARGS]` for each."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        self._is_call = False
        self._space: str | None = ""  # that the answer begins with: dropped before a call. None: behind that

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        self._held += text
        if self._is_call:
            return ()
        before, found, after = self._held.partition(TOOL_CALLS)
        if found:
            self._is_call, self._held = True, after
            return self._say(before)
        safe = self._held[: len(self._held) - partial_end(self._held, TOOL_CALLS)]
        self._held = self._held[len(safe) :]
        return self._say(safe)

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`."""
        held, self._held = self._held, ""
        if not self._is_call:
            return _content((self._space or "") + held)
        calls = calls_of(held, self._names) or _named_calls(held, self._names)
        if calls is not None:
            return events_of(calls)
        return _content((self._space or "") + TOOL_CALLS + held)

    def _say(self, text: str) -> list[Event]:
        if self._space is None:
            return _content(text)
        text = self._space + text
        self._space = None if text.strip() else text
        return _content(text) if self._space is None else []


def _content(text: str) -> list[Event]:
    return [Content(text)] if text else []


def _named_calls(text: str, names: frozenset[str]) -> list[Call] | None:
    """`name[ARGS]{…}`, several with the mark between them."""
    calls: list[Call] = []
    for part in text.split(TOOL_CALLS):
        match = _NAMED.match(part)
        if match is None:
            return None
        try:
            arguments = parse_json(part[match.end() :])
        except ValueError:
            return None
        call = call_of({"name": match[1], "arguments": arguments}, names)
        if call is None:
            return None
        calls.append(call)
    return calls
