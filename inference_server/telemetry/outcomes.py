"""How a request ended, in four words: what availability is reckoned from. Pure.

Whoever asks wrongly, too often, or a server that says goodbye is *refused*: that spends no error budget.
*Failed* is what a caller could not help.
"""

from __future__ import annotations

from enum import StrEnum

from inference_server.errors import (
    Conflict,
    Denied,
    HelixFlowError,
    InvalidRequest,
    OverLimit,
    ShuttingDown,
)

CALLERS_OWN = (InvalidRequest, Denied, Conflict, OverLimit, ShuttingDown)


class Outcome(StrEnum):
    """Every admitted or refused request has exactly one."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


def outcome_of(error: HelixFlowError) -> Outcome:
    """What a request that ended with `error` counts as.

    A server that drains refuses: its balancer asks another one, and no client sees it.
    """
    return Outcome.REFUSED if isinstance(error, CALLERS_OWN) else Outcome.FAILED
