"""Which blocks already hold the start of a sequence: chained keys over full blocks of tokens.

A block's key covers its own tokens, all before them and the request's salt, so equal keys mean equal content
for the same tenant. Only computed, full blocks are ever published. Blocks that a running sequence is about to
compute are announced, so that others with the same beginning can wait for them instead of computing them too.
It holds no block: the pool does.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from hashlib import blake2b

from inference_server.errors import InternalError
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
        self._coming: Counter[bytes] = Counter()  # keys of announced blocks
        self.num_queries = 0
        self.num_hits = 0

    def match(self, sequence: Sequence) -> list[int] | None:
        """The blocks that hold the longest known start of `sequence`; None if its next block is announced.

        Its last token is left out because a step must compute something to sample from; so are the tokens
        from which scores are wanted.
        """
        matched: list[int] = []
        if not self._enabled:
            return matched
        if sequence.awaited_key in self._coming:
            return None
        sequence.awaited_key = None
        num_tokens = sequence.num_scored_tokens if sequence.wants_scores else sequence.num_tokens
        for index in range((num_tokens - 1) // self._block_size):
            key = self._key(sequence, index)
            block_id = self._pool.find(key)
            if block_id is None:
                if key in self._coming:
                    sequence.awaited_key = key
                    return None
                break
            matched.append(block_id)
        return matched

    def announce(self, sequence: Sequence) -> None:
        """A sequence that was just admitted will compute the full blocks that it lacks."""
        if self._enabled:
            sequence.num_announced_blocks = sequence.num_tokens // self._block_size
            self._coming.update(self._announced_keys(sequence))

    def withdraw(self, sequence: Sequence) -> None:
        """It will not compute them after all."""
        for key in self._announced_keys(sequence):
            self._arrived(key)
        sequence.num_announced_blocks = 0

    def publish(self, sequence: Sequence) -> None:
        """Make the blocks that are full and computed by now known to others."""
        if not self._enabled:
            return
        num_full_blocks = sequence.num_computed_tokens // self._block_size
        for index in range(sequence.num_published_blocks, num_full_blocks):
            key = self._key(sequence, index)
            self._pool.publish(sequence.block_ids[index], key)
            if index < sequence.num_announced_blocks:
                self._arrived(key)
        sequence.num_published_blocks = num_full_blocks

    def count(self, sequence: Sequence) -> None:
        """Account for a first admission."""
        if self._enabled:
            self.num_queries += sequence.num_prompt_tokens
            self.num_hits += sequence.num_cached_tokens

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Compare what is announced with those who are to compute it.

        Raises:
            InternalError: somebody waits for what nobody computes, or the other way round.
        """
        coming = Counter([key for sequence in running for key in self._announced_keys(sequence)])
        if coming != self._coming:
            raise InternalError("the announced blocks are not those that are being computed")

    def _announced_keys(self, sequence: Sequence) -> list[bytes]:
        indices = range(sequence.num_published_blocks, sequence.num_announced_blocks)
        return [self._key(sequence, index) for index in indices]

    def _arrived(self, key: bytes) -> None:
        self._coming[key] -= 1
        if not self._coming[key]:
            del self._coming[key]

    def _key(self, sequence: Sequence, index: int) -> bytes:
        keys = sequence.block_keys
        while len(keys) <= index:
            start = len(keys) * self._block_size
            parent = keys[-1] if keys else root_key(sequence.request.cache_salt)
            keys.append(chained_key(parent, sequence.token_ids[start : start + self._block_size]))
        return keys[index]
