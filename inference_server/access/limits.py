"""How much a key may ask in a minute, and at once. Pure but for its counters; the caller brings the time.

A budget refills steadily and holds at most a minute's worth. What a request's tokens come to is known only at
its end, so tokens are taken then, and may be owed; who owes waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from inference_server.access.keys import Key
from inference_server.errors import QuotaExceeded, RateLimited

_MINUTE_S = 60.0


@dataclass(slots=True)
class Budget:
    """So many units a minute. `level` is what there was at `seen_s`; below 0 is owed."""

    per_minute: int
    level: float
    seen_s: float

    def remaining(self, now_s: float) -> float:
        """Units that may be taken now."""
        refilled = self.level + max(0.0, now_s - self.seen_s) * self.per_minute / _MINUTE_S
        return min(float(self.per_minute), refilled)

    def take(self, units: float, now_s: float) -> None:
        """Take units, also those that are not there."""
        self.level, self.seen_s = self.remaining(now_s) - units, now_s

    def wait_s(self, units: float, now_s: float) -> float:
        """Seconds until so many units are there."""
        missing = min(units, float(self.per_minute)) - self.remaining(now_s)
        return max(0.0, missing * _MINUTE_S / self.per_minute)


class KeyLimiter:
    """What one key has used. Owner: the event loop."""

    def __init__(self, key: Key, now_s: float) -> None:
        self.key = key
        self.num_running = 0
        self._requests = _budget(key.requests_per_minute, now_s)
        self._tokens = _budget(key.tokens_per_minute, now_s)

    @contextmanager
    def admitted(self, now_s: float) -> Iterator[None]:
        """Count a request for the length of the block.

        Raises:
            RateLimited: too many requests, at once or in this minute.
            QuotaExceeded: the tokens of this minute are used up.
        """
        self._check(now_s)
        if self._requests is not None:
            self._requests.take(1, now_s)
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1

    def spend(self, num_tokens: int, now_s: float) -> None:
        """A request has come to so many tokens."""
        if self._tokens is not None:
            self._tokens.take(num_tokens, now_s)

    def headers(self, now_s: float) -> Mapping[str, str]:
        """What is left, as OpenAI's clients read it."""
        found: dict[str, str] = {}
        for name, budget in (("requests", self._requests), ("tokens", self._tokens)):
            if budget is not None:
                found[f"x-ratelimit-limit-{name}"] = str(budget.per_minute)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(budget.remaining(now_s))))
                found[f"x-ratelimit-reset-{name}"] = f"{budget.wait_s(budget.per_minute, now_s):.3f}s"
        return found

    def _check(self, now_s: float) -> None:
        most = self.key.max_concurrency
        if most is not None and self.num_running >= most:
            raise RateLimited(
                f"this key may have {most} requests at once; wait for one to end", retry_after_s=1
            )
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now_s)):
            raise RateLimited(
                f"this key may send {self._requests.per_minute} requests a minute", retry_after_s=wait_s
            )
        if self._tokens is not None and (wait_s := self._tokens.wait_s(1, now_s)):
            raise QuotaExceeded(
                f"this key may use {self._tokens.per_minute} tokens a minute, prompts and answers together",
                retry_after_s=wait_s,
            )


def _budget(per_minute: int | None, now_s: float) -> Budget | None:
    return None if per_minute is None else Budget(per_minute, float(per_minute), now_s)
