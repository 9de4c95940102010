"""Stop strings. Pure: text in, text that may leave out."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back whatever could be the beginning of a stop string, and ends the text at the first one.

    The first is the one that is complete first (of several, the longest), so that it does not matter in what
    pieces the text comes. `found` is that stop string, once there is one.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop string itself is part of the text."""
        self._stops = tuple(stops)
        self._include = include
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """The text that is safe to send. After a stop, nothing more leaves."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        self._held += text
        if (end := self._find()) is not None:
            return end
        keep = self._longest_partial()
        safe, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return safe

    def flush(self) -> str:
        """What was held back and has turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self) -> str | None:
        """The text up to the first stop string, if there is one."""
        found = [
            (position + len(stop), position, stop)
            for stop in self._stops
            if (position := self._held.find(stop)) >= 0
        ]
        if not found:
            return None
        end, start, self.found = min(found)
        safe, self._held = self._held[: end if self._include else start], ""
        return safe

    def _longest_partial(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
