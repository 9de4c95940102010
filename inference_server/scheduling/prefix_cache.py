"""Which blocks already hold the start of a sequence: chained keys over full blocks of tokens.

A block's key covers its own tokens, all before them and the request's salt, so equal keys mean equal content
for the same tenant. Only computed, full blocks are ever published. It holds no block: the pool does.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from hashlib import blake2b

from inference_server.scheduling.block_pool import BlockPool
from inference_server.scheduling.sequence import Sequence

MAX_TOKEN_ID = 2**31 - 1  # keys pack a token into four bytes
_DIGEST_SIZE = 32  # collisions must stay out of reach: they would show one tenant's text to another


def root_key(salt: str) -> bytes:
    """What the first block's key is chained to."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_SIZE, person=b"salt").digest()


def chained_key(parent: bytes, token_ids: Seq[int]) -> bytes:
    """The key of a block with these tokens after everything that `parent` covers."""
    packed = array("I", token_ids).tobytes()
    return blake2b(parent + packed, digest_size=_DIGEST_SIZE, person=b"block").digest()


class PrefixCache:
    """Finds and publishes blocks by content. `num_queries` and `num_hits` count prompt tokens."""

    def __init__(self, pool: BlockPool, *, block_size: int, enabled: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._enabled = enabled
        self.num_queries = 0
        self.num_hits = 0

    def match(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the longest known start of `sequence`, without its last token.

        The last token is left out because a step must compute something to sample from.
        """
        matched: list[int] = []
        if not self._enabled:
            return matched
        for index in range((sequence.num_tokens - 1) // self._block_size):
            block_id = self._pool.find(self._key(sequence, index))
            if block_id is None:
                break
            matched.append(block_id)
        return matched

    def publish(self, sequence: Sequence) -> None:
        """Make the blocks that are full and computed by now known to others."""
        if not self._enabled:
            return
        num_full_blocks = sequence.num_computed_tokens // self._block_size
        for index in range(sequence.num_published_blocks, num_full_blocks):
            self._pool.publish(sequence.block_ids[index], self._key(sequence, index))
        sequence.num_published_blocks = num_full_blocks

    def count(self, sequence: Sequence) -> None:
        """Account for a first admission."""
        if self._enabled:
            self.num_queries += sequence.num_prompt_tokens
            self.num_hits += sequence.num_cached_tokens

    def _key(self, sequence: Sequence, index: int) -> bytes:
        keys = sequence.block_keys
        while len(keys) <= index:
            start = len(keys) * self._block_size
            parent = keys[-1] if keys else root_key(sequence.request.cache_salt)
            keys.append(chained_key(parent, sequence.token_ids[start : start + self._block_size]))
        return keys[index]
