"""An answer that a grammar holds to a form in JSON, or to calls between marks."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from inference_server.generation.parsing.events import AnswerParser, Event
from inference_server.generation.parsing.hermes import OPEN, HermesParser
from inference_server.generation.parsing.plain import PlainParser


class FormOrCallsParser:
    """The first character tells which: no JSON begins as a mark does. In a form nothing is marked."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._parser: AnswerParser = PlainParser()
        self._has_begun = False

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        if text and not self._has_begun:
            self._has_begun = True
            if text.startswith(OPEN[0]):
                self._parser = HermesParser(self._names)
        return self._parser.feed(text)

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`."""
        return self._parser.finish()
