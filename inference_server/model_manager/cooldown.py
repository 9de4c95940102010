"""How long a model whose load failed is left alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from inference_server.errors import HelixFlowError, ModelLoadFailed

FIRST_COOLDOWN_S = 10.0
LONGEST_COOLDOWN_S = 300.0


@dataclass(frozen=True, slots=True)
class Failure:
    """How the last load ended. `cooldown_s` after `at_s` the next request may try again."""

    error: HelixFlowError
    at_s: float
    num_in_a_row: int
    cooldown_s: float

    def rest_s(self, now_s: float) -> float:
        """Seconds of the cooldown that are left."""
        return max(0.0, self.at_s + self.cooldown_s - now_s)


def next_failure(error: HelixFlowError, before: Failure | None, now_s: float, *, cools_down: bool) -> Failure:
    """The failure that follows `before` (None: the model had been loaded, or never tried).

    The cooldown is 10 s and doubles with each failure in a row up to 5 minutes. Without `cools_down` there
    is none: asking again costs nothing, and the answer may be another one at any moment.
    """
    num_in_a_row = 1 + (before.num_in_a_row if before is not None else 0)
    cooldown_s = min(LONGEST_COOLDOWN_S, FIRST_COOLDOWN_S * 2.0 ** min(num_in_a_row - 1, 16))
    return Failure(error, now_s, num_in_a_row, cooldown_s if cools_down else 0.0)


def remembered(failure: Failure, now_s: float) -> ModelLoadFailed:
    """What a request during the cooldown is told at once."""
    rest_s = failure.rest_s(now_s)
    return ModelLoadFailed(
        f"{failure.error.message} ({now_s - failure.at_s:.0f} s ago; the next try is in {rest_s:.0f} s)",
        retry_after_s=rest_s,
    )
