"""How long a model stays after a request, as Ollama's clients say it, and how much of it they may decide."""

from __future__ import annotations

from inference_server.config.units import parse_duration
from inference_server.errors import InvalidRequest

FOR_EVER_S = -1.0  # what the manager takes for it
MAX_LENT_S = 24 * 3600.0  # the longest stay that a key for inference can ask for


def parse_keep_alive(value: float | str | None) -> float | None:
    """Seconds from "10m", "1h30m" or a number; -1 for ever (as any number below 0); None if there is none.

    Raises:
        InvalidRequest: it is no duration.
    """
    if value is None:
        return None
    if isinstance(value, int | float) and value < 0:
        return FOR_EVER_S
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise InvalidRequest(f"keep_alive: {error}", param="keep_alive") from None
    return FOR_EVER_S if seconds is None else seconds


def lent_keep_alive(wanted_s: float | None, own_s: float | None) -> float | None:
    """What a key for inference gets of the stay it wants; the model's entry says `own_s` (None: for ever).

    Such a key may keep a model longer, for a day at most; it can neither pin it nor take it from others.
    """
    if wanted_s is None or own_s is None:
        return None
    longest_s = max(own_s, MAX_LENT_S)
    return longest_s if wanted_s < 0 else min(max(wanted_s, own_s), longest_s)
