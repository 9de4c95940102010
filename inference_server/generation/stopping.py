"""Stop strings. Pure: text in, text that may leave out."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back whatever could be the beginning of a stop string, and ends the text before the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is safe to send. After a stop, nothing more leaves."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        self._held += text
        found = [self._held.find(stop) for stop in self._stops]
        positions = [position for position in found if position >= 0]
        if positions:
            self.stopped = True
            safe, self._held = self._held[: min(positions)], ""
            return safe
        keep = self._longest_partial()
        safe, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return safe

    def flush(self) -> str:
        """What was held back and has turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _longest_partial(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
