"""Blocks hold what was stored in them, and nothing else."""

from __future__ import annotations

import torch

from inference_server.execution.kv_cache import KVCache, LayerCache, LayerShape

SHAPE = LayerShape(num_kv_heads=2, key_dim=3, value_dim=5)
CPU = torch.device("cpu")


def make_layer(num_blocks: int = 6, block_size: int = 4) -> LayerCache:
    return LayerCache(SHAPE, num_blocks, block_size, torch.float32, CPU)


def test_what_is_stored_is_gathered_in_the_order_of_the_block_table() -> None:
    layer = make_layer()
    keys, values = torch.randn(8, 2, 3), torch.randn(8, 2, 5)
    slots = torch.tensor([20, 21, 22, 23, 4, 5, 6, 7])  # block 5, then block 1
    layer.store(slots, keys, values)
    gathered_keys, gathered_values = layer.gather(torch.tensor([[5, 1]]))
    assert gathered_keys.shape == (1, 2, 8, 3)
    assert gathered_values.shape == (1, 2, 8, 5)
    torch.testing.assert_close(gathered_keys[0].transpose(0, 1), keys)
    torch.testing.assert_close(gathered_values[0].transpose(0, 1), values)


def test_storing_touches_no_other_slot() -> None:
    layer = make_layer()
    layer.keys.fill_(9.0)
    layer.store(torch.tensor([9]), torch.zeros(1, 2, 3), torch.zeros(1, 2, 5))
    assert int((layer.keys == 0).all(dim=-1).all(dim=-1).sum()) == 1
    assert not layer.keys[2, 1].any()


def test_gathering_several_tables_keeps_their_rows_apart() -> None:
    layer = make_layer(num_blocks=3, block_size=2)
    for block in range(3):
        layer.keys[block] = layer.values[block] = float(block + 1)
    keys, _ = layer.gather(torch.tensor([[2, 0], [1, 3]]))  # 3 is the padding block
    assert keys[0, 0, :, 0].tolist() == [3.0, 3.0, 1.0, 1.0]
    assert keys[1, 0, :, 0].tolist() == [2.0, 2.0, 0.0, 0.0]


def test_clearing_zeroes_these_blocks_in_every_layer_and_no_other() -> None:
    cache = KVCache([SHAPE, SHAPE], num_blocks=4, block_size=2, dtype=torch.float32, device=CPU)
    for layer in cache.layers:
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("nan"))
    cache.clear(torch.tensor([1, 3]))
    for layer in cache.layers:
        for store in (layer.keys, layer.values):
            assert [not block.isnan().any() for block in store[:4]] == [False, True, False, True]


def test_a_new_cache_knows_its_size_and_its_padding_block_is_zero() -> None:
    cache = KVCache([SHAPE] * 3, num_blocks=4, block_size=2, dtype=torch.bfloat16, device=CPU)
    assert cache.padding_block == 4
    assert SHAPE.num_elements == 2 * (3 + 5)
    assert cache.num_bytes == 3 * (4 + 1) * 2 * SHAPE.num_elements * 2
    for layer in cache.layers:
        assert not layer.keys[cache.padding_block].any()
        assert not layer.values[cache.padding_block].any()
