"""What parsers find, and what every parser is."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool is called; calls count from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments, which together are a JSON object."""

    index: int
    text: str


Event = Content | Reasoning | CallBegin | CallArguments


class AnswerParser(Protocol):
    """One answer's text, piece by piece. What comes out does not depend on how it was cut."""

    def feed(self, text: str) -> Seq[Event]:
        """What this piece adds."""

    def finish(self) -> Seq[Event]:
        """What was held back and is now known; nothing comes after it."""


def joined(events: Seq[Event]) -> list[Event]:
    """The same events with neighbouring pieces of one thing put together; for whole answers."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        match last, event:
            case Content(before), Content(text):
                found[-1] = Content(before + text)
            case Reasoning(before), Reasoning(text):
                found[-1] = Reasoning(before + text)
            case CallArguments(index, before), CallArguments(again, text) if index == again:
                found[-1] = CallArguments(index, before + text)
            case _:
                found.append(event)
    return found


def partial_end(text: str, mark: str) -> int:
    """Length of the longest end of `text` that may be the beginning of `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
