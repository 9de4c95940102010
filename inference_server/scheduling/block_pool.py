"""Fixed-size KV blocks with reference counts, and the index of blocks whose contents are known.

A freed block keeps its contents until it is reused, least recently freed first; until then a prefix hit may
take it up again. Owner: the scheduler.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from inference_server.errors import InternalError


class BlockPool:
    """`num_blocks` blocks, numbered from 0."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, known contents or not."""
        return len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks with no known contents, or None (and take none) if too few are free."""
        if count > len(self._free):
            return None
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            known = self._hash_of.pop(block, None)
            if known is not None:
                del self._block_of[known]
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Give back one reference to each block. Give later blocks first, so that prefixes live longest."""
        for block in blocks:
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
            elif self._references[block] < 0:
                raise InternalError(f"KV block {block} was freed twice")

    def find(self, content: bytes) -> int | None:
        """The block with these contents, if any; it may be free."""
        return self._block_of.get(content)

    def share(self, block: int) -> None:
        """Take one more reference to a found block."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def is_free(self, block: int) -> bool:
        """Whether nobody holds the block."""
        return self._references[block] == 0

    def register(self, block: int, content: bytes) -> None:
        """Make a held block's contents findable. The first block with the same contents stays the known one."""
        if content not in self._block_of and block not in self._hash_of:
            self._block_of[content] = block
            self._hash_of[block] = content

    def check_integrity(self, held: Iterable[int]) -> None:
        """`held` names every block once per holder.

        Raises:
            InternalError: a block is lost, doubly free or wrongly counted.
        """
        counts = [0] * self.num_blocks
        for block in held:
            counts[block] += 1
        if counts != self._references:
            raise InternalError("reference counts of KV blocks do not match their holders")
        if {block for block, count in enumerate(counts) if count == 0} != set(self._free):
            raise InternalError("the free list of KV blocks does not match the reference counts")
        if {block: content for content, block in self._block_of.items()} != self._hash_of:
            raise InternalError("the prefix index of KV blocks is inconsistent")
