"""The keys of a running server with what each has used; all are replaced when the key file is read again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from inference_server.access.keys import Key, KeyRing
from inference_server.access.limits import KeyLimiter


class Caller:
    """Whoever sent one request: a key and its limits."""

    __slots__ = ("_clock", "_is_one_of_several", "_limiter")

    def __init__(
        self, limiter: KeyLimiter, clock: Callable[[], float], *, is_one_of_several: bool = False
    ) -> None:
        self._limiter = limiter
        self._clock = clock
        self._is_one_of_several = is_one_of_several

    @property
    def key(self) -> Key:
        """What it may do."""
        return self._limiter.key

    @property
    def tenant(self) -> str:
        """Who shares queues and caches with others, by the key's name; "" if there is no other key."""
        return self.key.name if self._is_one_of_several else ""

    def admitted(self) -> AbstractContextManager[None]:
        """Count a request for the length of a block. Raises RateLimited, QuotaExceeded."""
        return self._limiter.admitted(self._clock())

    def spend(self, num_tokens: int) -> None:
        """The request has come to so many tokens."""
        self._limiter.spend(num_tokens, self._clock())

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left to the key, as response headers."""
        found = self._limiter.headers(self._clock())
        return [(name.encode(), value.encode()) for name, value in found.items()]


class Gate:
    """Finds the caller behind a key. Owner: the event loop. `clock` gives monotonic seconds."""

    def __init__(self, keys: Sequence[Key] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ring = KeyRing()
        self._limiters: dict[str, KeyLimiter] = {}
        self.replace(keys)

    @property
    def is_open(self) -> bool:
        """Whether there are no keys, so that everybody may do everything."""
        return not len(self._ring)

    def replace(self, keys: Sequence[Key]) -> None:
        """These are the keys from now on. A key that stays as it was keeps what it has used."""
        self._ring = KeyRing(keys)
        before = self._limiters
        self._limiters = {
            key.name: before[key.name]
            if key.name in before and before[key.name].key == key
            else KeyLimiter(key, self._clock())
            for key in keys
        }

    def caller(self, offered: bytes) -> Caller | None:
        """Whose key this is; None if it is nobody's."""
        key = self._ring.find(offered)
        if key is None:
            return None
        return Caller(self._limiters[key.name], self._clock, is_one_of_several=len(self._ring) > 1)
