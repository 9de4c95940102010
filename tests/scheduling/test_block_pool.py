"""Blocks: held, shared, freed, found again."""

from __future__ import annotations

import pytest

from inference_server.errors import InternalError
from inference_server.scheduling.block_pool import BlockPool


def test_blocks_without_content_are_reused_before_cached_ones() -> None:
    pool = BlockPool(3)
    cached, plain, _ = pool.allocate(3)
    pool.publish(cached, b"key")
    pool.free([cached, plain])
    assert pool.allocate(1) == [plain]
    assert pool.find(b"key") == cached
    assert pool.allocate(1) == [cached]
    assert pool.find(b"key") is None


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.share(blocks)
    pool.free(blocks)
    assert pool.num_free == 1
    pool.free(blocks)
    assert pool.num_free == 2


def test_the_first_of_two_blocks_with_equal_content_keeps_the_key() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"key")
    pool.publish(second, b"key")
    assert pool.find(b"key") == first
    assert pool.key_of(second) is None
    pool.check_integrity([1, 1])


def test_freeing_twice_and_taking_too_many_are_errors() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    with pytest.raises(InternalError, match="2 blocks asked for, 1 are free"):
        pool.allocate(2)
    pool.free(blocks)
    with pytest.raises(InternalError, match="freed twice"):
        pool.free(blocks)


def test_a_miscounted_lost_or_misled_block_is_found_by_the_integrity_check() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(InternalError, match="miscounted"):
        pool.check_integrity([0, 0])
    pool.publish(block, b"key")
    pool.check_integrity([1, 0] if block == 0 else [0, 1])
    pool._key_of[block] = b"other"
    with pytest.raises(InternalError, match="key"):
        pool.check_integrity([1, 0])
    pool._key_of[block] = b"key"
    pool._free.clear()
    with pytest.raises(InternalError, match="neither free nor held"):
        pool.check_integrity([1, 0])


def test_forgotten_content_is_never_found_and_its_blocks_can_be_used() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.publish(blocks[0], b"key")
    pool.free(blocks)
    pool.forget_keys()
    assert pool.find(b"key") is None
    pool.check_integrity([0, 0])
    assert len(pool.allocate(2)) == 2
