"""The KV memory of one model: fixed-size blocks, one pair of tensors per attention layer.

Owner: the runner. Which block belongs to whom is the scheduler's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer stores per token: `num_kv_heads` keys of `key_dim` and values of `value_dim`."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        """Numbers stored per token."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class LayerCache:
    """Keys and values of one layer.

    keys   [num_blocks + 1, block_size, num_kv_heads, key_dim]
    values [num_blocks + 1, block_size, num_kv_heads, value_dim]

    Memory is not touched before it is used: whoever begins a block fills or clears it in the same step.
    The last block is zero and never written: block tables are padded with it, so that a padded read is
    always finite and never another request's data.
    """

    def __init__(
        self, shape: LayerShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        dims = (num_blocks + 1, block_size, shape.num_kv_heads)
        self.keys = torch.empty((*dims, shape.key_dim), dtype=dtype, device=device)
        self.values = torch.empty((*dims, shape.value_dim), dtype=dtype, device=device)
        self.keys[-1].zero_()
        self.values[-1].zero_()
        self._flat_keys = self.keys.view(-1, shape.num_kv_heads, shape.key_dim)
        self._flat_values = self.values.view(-1, shape.num_kv_heads, shape.value_dim)

    def store(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write new tokens. slots [num_tokens]; keys, values [num_tokens, num_kv_heads, dim]."""
        self._flat_keys.index_copy_(0, slots, keys)
        self._flat_values.index_copy_(0, slots, values)

    def gather(self, block_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of whole block tables, for attention.

        block_table [num_seqs, width] → two tensors [num_seqs, num_kv_heads, width * block_size, dim].
        """
        num_seqs, width = block_table.shape
        flat = block_table.reshape(-1)
        return (
            self._read(self.keys, flat, num_seqs, width),
            self._read(self.values, flat, num_seqs, width),
        )

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero blocks that a sequence has just begun, so that nothing stale can be read from them."""
        self.keys.index_fill_(0, blocks, 0)
        self.values.index_fill_(0, blocks, 0)

    @staticmethod
    def _read(store: torch.Tensor, flat: torch.Tensor, num_seqs: int, width: int) -> torch.Tensor:
        _, block_size, num_heads, dim = store.shape
        rows = store.index_select(0, flat).view(num_seqs, width * block_size, num_heads, dim)
        return rows.transpose(1, 2)


class KVCache:
    """All layers' caches. `num_blocks` usable blocks of `block_size` tokens each."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layers = [LayerCache(shape, num_blocks, block_size, dtype, device) for shape in shapes]

    @property
    def padding_block(self) -> int:
        """The block that is never written."""
        return self.num_blocks

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    @property
    def held_bytes(self) -> int:
        """As `num_bytes`, but 0 after `release`."""
        return sum(storage.nbytes() for storage in self._storages())

    def release(self) -> None:
        """Give the memory back; only `restore` may follow."""
        for storage in self._storages():
            storage.resize_(0)

    def restore(self) -> None:
        """Take it again; but for the padding block, what it holds is unknown.

        Raises:
            torch.OutOfMemoryError: the device is too small now.
        """
        for layer in self.layers:
            for tensor in (layer.keys, layer.values):
                tensor.untyped_storage().resize_(tensor.nbytes)
                tensor[-1].zero_()

    def _storages(self) -> list[torch.UntypedStorage]:
        return [tensor.untyped_storage() for layer in self.layers for tensor in (layer.keys, layer.values)]

    @property
    def regions(self) -> list[tuple[int, int]]:
        """Address and bytes of the memory of each layer's keys and values."""
        tensors = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero these blocks in every layer. blocks [n]."""
        for layer in self.layers:
            layer.clear(blocks)
