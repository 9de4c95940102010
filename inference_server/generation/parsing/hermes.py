"""Calls between `<tool_call>` and `</tool_call>`, as Hermes and Qwen write them, anywhere in an answer."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from inference_server.generation.parsing.events import Content, Event, partial_end
from inference_server.generation.parsing.json_calls import calls_of, events_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser:
    """What stands between the marks and is no call of a known tool stays text, marks included.

    White space around calls belongs to nobody.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        self._is_inside = False
        self._num_calls = 0
        self._space = ""  # held back: a call may follow, which would not want it
        self._is_behind_call = False  # and nothing but white space has come since

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        self._held += text
        events: list[Event] = []
        while True:
            mark = CLOSE if self._is_inside else OPEN
            before, found, after = self._held.partition(mark)
            if not found:
                break
            self._held = after
            events += self._call(before) if self._is_inside else self._say(before)
            self._is_inside = not self._is_inside
        if not self._is_inside:
            safe = self._held[: len(self._held) - partial_end(self._held, OPEN)]
            self._held = self._held[len(safe) :]
            events += self._say(safe)
        return events

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`. A call that was not closed counts if it is whole."""
        held, self._held = self._held, ""
        if not self._is_inside:
            return self._say(held + self._space if held else "") or self._trailing()
        calls = calls_of(held, self._names)
        if calls is None:
            return self._say(OPEN + held)
        self._space = ""
        return events_of(calls, self._num_calls)

    def _call(self, text: str) -> list[Event]:
        calls = calls_of(text, self._names)
        if calls is None:
            return self._say(OPEN + text + CLOSE)
        self._space, self._is_behind_call = "", True
        events = events_of(calls, self._num_calls)
        self._num_calls += len(calls)
        return events

    def _say(self, text: str) -> list[Event]:
        text = self._space + (text.lstrip() if self._is_behind_call else text)
        self._is_behind_call &= not text
        said = text.rstrip()
        self._space = text[len(said) :]
        return [Content(said)] if said else []

    def _trailing(self) -> list[Event]:
        """White space at the end of an answer without calls is part of it."""
        space, self._space = self._space, ""
        return [Content(space)] if space and not self._num_calls else []
