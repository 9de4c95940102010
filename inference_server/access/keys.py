"""API keys: what each may do, and which one an offered text is. Only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Scope = Literal["inference", "admin"]
BOTH: frozenset[Scope] = frozenset({"inference", "admin"})
INFERENCE: frozenset[Scope] = frozenset({"inference"})


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `name` is for logs; None as a limit is no limit. `models` None: all of them, by any name."""

    name: str
    digest: bytes  # SHA-256
    scopes: frozenset[Scope] = INFERENCE
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    models: frozenset[str] | None = None

    @property
    def may_administer(self) -> bool:
        """Whether it may decide what is in memory."""
        return "admin" in self.scopes

    def may_ask(self, model: str) -> bool:
        """Whether it may ask a model, by its configured name."""
        return self.models is None or model in self.models


def digest_of(text: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(text).digest()


class KeyRing:
    """The keys that open this server; none at all: it is open to everybody."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, offered: bytes) -> Key | None:
        """The key that this is. Every key is compared, in constant time each."""
        digest = digest_of(offered)
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found
