"""Names for the contents of full KV blocks: a hash over the block's tokens and everything before them.

Cryptographic, since a collision would serve one request another's keys; salted, so that one tenant cannot
find out by timing what another has asked.
"""

from __future__ import annotations

import array
import hashlib
from collections.abc import Sequence

DIGEST_BYTES = 16


def first_parent(salt: str) -> bytes:
    """The parent of a sequence's first block."""
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a full block with these tokens after `parent`."""
    return hashlib.blake2b(array.array("q", tokens).tobytes(), key=parent, digest_size=DIGEST_BYTES).digest()
