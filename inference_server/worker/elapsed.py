"""How long something has lasted, without the time in which nobody could look. Pure: it has no clock."""

from __future__ import annotations

LOOK_INTERVAL_S = 1.0
MAX_GAP_S = 2 * LOOK_INTERVAL_S


class Elapsed:
    """Seconds since its start, counted from look to look, which come about every `LOOK_INTERVAL_S`.

    Of a longer gap no more than `MAX_GAP_S` counts: this process was stopped, frozen or very late, and what
    would have ended the wait may have happened meanwhile, unseen.
    """

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self._seconds = 0.0

    def restart(self, now_s: float) -> None:
        """Count from now."""
        self._looked_s, self._seconds = now_s, 0.0

    def look(self, now_s: float) -> float:
        """The seconds by now."""
        self._seconds += min(now_s - self._looked_s, MAX_GAP_S)
        self._looked_s = now_s
        return self._seconds
