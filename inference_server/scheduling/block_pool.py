"""Reference-counted KV blocks, named by number. It knows neither tokens nor sequences.

A block is free when nobody holds it. A free block that carries a key (of the prefix cache) keeps it, and can
be found and shared again, until it is handed out for something else: free memory is the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from inference_server.errors import InternalError


class BlockPool:
    """`num_blocks` blocks, reused in least recently freed order, those without a key first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to reuse first
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, with a key or without."""
        return len(self._free)

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """How many of these nobody holds."""
        return sum([block_id in self._free for block_id in block_ids])

    def allocate(self, num_blocks: int) -> list[int]:
        """Hold `num_blocks` blocks of unknown content, forgetting what they cached.

        Raises:
            InternalError: fewer are free; callers look at `num_free` first.
        """
        if num_blocks > len(self._free):
            raise InternalError(f"{num_blocks} blocks asked for, {len(self._free)} are free")
        return [self._take_next() for _ in range(num_blocks)]

    def share(self, block_ids: Iterable[int]) -> None:
        """Hold these blocks too, for what is in them."""
        for block_id in block_ids:
            if self._num_holders[block_id] == 0:
                del self._free[block_id]
            self._num_holders[block_id] += 1

    def free(self, block_ids: Seq[int]) -> None:
        """Let go of a sequence's blocks, given in the order of its tokens.

        The last one becomes free first, so that a cached prefix is eaten from its end.
        """
        for block_id in reversed(block_ids):
            num_holders = self._num_holders[block_id] - 1
            if num_holders < 0:
                raise InternalError(f"block {block_id} freed twice")
            self._num_holders[block_id] = num_holders
            if num_holders == 0:
                self._free[block_id] = None
                if self._key_of[block_id] is None:
                    self._free.move_to_end(block_id, last=False)

    def find(self, key: bytes) -> int | None:
        """The block that carries this key, held or free."""
        return self._block_of.get(key)

    def publish(self, block_id: int, key: bytes) -> None:
        """Let a held block be found by `key`, unless another one already is (equal content, made twice)."""
        if key not in self._block_of:
            self._block_of[key] = block_id
            self._key_of[block_id] = key

    def key_of(self, block_id: int) -> bytes | None:
        """The key that a block carries."""
        return self._key_of[block_id]

    def forget_keys(self) -> None:
        """No block can be found any more: what they held is gone."""
        self._block_of.clear()
        self._key_of = [None] * self.num_blocks

    def check_integrity(self, num_holders: Seq[int]) -> None:
        """Compare with the holders that the caller counted, block by block.

        Raises:
            InternalError: a block is lost, held by nobody or free though held, or a key leads astray.
        """
        if list(num_holders) != self._num_holders:
            raise InternalError("the holders of some block are miscounted")
        if {block_id for block_id, count in enumerate(num_holders) if count == 0} != set(self._free):
            raise InternalError("some block is neither free nor held, or both")
        published = {key: block_id for block_id, key in enumerate(self._key_of) if key is not None}
        if published != self._block_of:
            raise InternalError("some key does not lead to the block that carries it")

    def _take_next(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        self._num_holders[block_id] = 1
        key = self._key_of[block_id]
        if key is not None:
            del self._block_of[key]
            self._key_of[block_id] = None
        return block_id
