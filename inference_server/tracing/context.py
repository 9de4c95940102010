"""W3C trace context: where a request belongs in a trace that others have begun. Pure; knows no OpenTelemetry.

Source: https://www.w3.org/TR/trace-context/ (level 1, sections 3.2 and 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_STATE_CHARS = 512  # what section 3.3.1.5 asks everybody to pass on
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of some trace: 32 and 16 hexadecimal digits. `state` is its vendors' own, passed on as it is."""

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        """As the header says it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}"


def context_from(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """What the `traceparent` and `tracestate` headers of a request say; None if that is nothing valid."""
    found = _PARENT.fullmatch(parents[0].strip()) if len(parents) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    is_wrong = version == "ff" or (version == "00" and rest) or not (int(trace_id, 16) and int(span_id, 16))
    if is_wrong:
        return None
    state = ",".join(states)
    is_passed_on = len(state) <= MAX_STATE_CHARS and _STATE.fullmatch(state) is not None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1), state if is_passed_on else "")
