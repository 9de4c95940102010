"""Calls whose form a grammar guarantees: one tool's arguments, or a list of calls. Arguments stream."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as Seq

from inference_server.generation.parsing.events import CallArguments, CallBegin, Event

_HEAD = re.compile(r'\s*\}?\s*[\[,]?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')


class ArgumentsParser:
    """All text is the arguments of one tool."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_begun = False

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        if not text:
            return ()
        events: list[Event] = [] if self._has_begun else [CallBegin(0, self._name)]
        self._has_begun = True
        return [*events, CallArguments(0, text)]

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`."""
        return ()


class CallListParser:
    """A JSON list of objects with `name` and `arguments`, in this order."""

    def __init__(self) -> None:
        self._held = ""
        self._index = -1
        self._depth = 0  # of brackets in the arguments; 0: between calls
        self._in_string = False
        self._is_escaped = False

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        events: list[Event] = []
        self._held += text
        while self._held:
            if self._depth:
                events.append(self._arguments())
                continue
            match = _HEAD.match(self._held)
            if match is None or match.end() == len(self._held):
                break
            self._held = self._held[match.end() :]
            self._index += 1
            self._depth = 1 if self._held[0] in "{[" else 0
            if not self._depth:
                break  # no object, which the grammar rules out
            events += [
                CallBegin(self._index, json.loads(match[1])),
                CallArguments(self._index, self._held[0]),
            ]
            self._held = self._held[1:]
        return events

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`. What is left closes the list, or was cut off."""
        return ()

    def _arguments(self) -> Event:
        """Up to the end of the arguments, or of what has come."""
        for position, char in enumerate(self._held):
            self._step(char)
            if not self._depth:
                text, rest = self._held[: position + 1], self._held[position + 1 :]
                self._held = rest
                return CallArguments(self._index, text)
        text, self._held = self._held, ""
        return CallArguments(self._index, text)

    def _step(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif self._in_string:
            self._is_escaped = char == "\\"
            self._in_string = char != '"'
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
