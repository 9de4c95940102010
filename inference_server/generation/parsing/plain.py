"""An answer in which nothing is marked."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from inference_server.generation.parsing.events import Content, Event


class PlainParser:
    """All text is content."""

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        return [Content(text)] if text else ()

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`."""
        return ()
