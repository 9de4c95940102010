"""Reasoning between `<think>` and `</think>` at an answer's beginning, as most reasoning models write it."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from inference_server.generation.parsing.events import AnswerParser, Event, Reasoning, partial_end

OPEN, CLOSE = "<think>", "</think>"


class ThinkParser:
    """Hands what follows the reasoning to another parser.

    `is_inside`: the prompt has opened it already. White space around the marks belongs to nobody.
    """

    def __init__(self, then: AnswerParser, *, is_inside: bool) -> None:
        self._then = then
        self._held = ""
        self._is_inside = is_inside
        self._is_over = False
        self._has_said = False  # reasoning, which begins behind white space
        self._has_begun = True  # what follows the reasoning has, behind its white space

    def feed(self, text: str) -> Seq[Event]:
        """See `AnswerParser.feed`."""
        if self._is_over:
            return self._then.feed(self._begun(text))
        self._held += text
        if self._is_inside or self._opens():
            return self._reason()
        if not self._begins_otherwise():
            return ()
        self._is_over = self._has_begun = True
        held, self._held = self._held, ""
        return self._then.feed(held)

    def finish(self) -> Seq[Event]:
        """See `AnswerParser.finish`. Reasoning that never ended stays reasoning."""
        held, self._held = self._held, ""
        if self._is_over:
            return self._then.finish()
        if self._is_inside:
            return [*self._said(held.rstrip()), *self._then.finish()]
        return [*self._then.feed(held), *self._then.finish()]

    def _opens(self) -> bool:
        """Whether the answer begins with reasoning; if so, it is inside now."""
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._is_inside, self._held = True, start.removeprefix(OPEN)
        return self._is_inside

    def _begins_otherwise(self) -> bool:
        """Whether the answer can no longer begin with reasoning."""
        return not OPEN.startswith(self._held.lstrip())

    def _reason(self) -> list[Event]:
        before, mark, after = self._held.partition(CLOSE)
        if mark:
            self._is_over, self._held, self._has_begun = True, "", False
            return [*self._said(before.rstrip()), *self._then.feed(self._begun(after))]
        safe = self._held[: len(self._held) - partial_end(self._held, CLOSE)]
        safe = safe.rstrip()  # it may stand before the end
        self._held = self._held[len(safe) :]
        return self._said(safe)

    def _said(self, text: str) -> list[Event]:
        if not self._has_said:
            text = text.lstrip()
        self._has_said = self._has_said or bool(text)
        return [Reasoning(text)] if text else []

    def _begun(self, text: str) -> str:
        """The text without the white space behind the reasoning."""
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        return text
