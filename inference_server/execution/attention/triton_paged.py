"""Paged attention with our own Triton kernels: chunks, decodes and padding, any head sizes.

Chooses tiles and grids from a region's padded sizes; knows nothing of batches.
"""

from __future__ import annotations

import torch
import triton

from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.kv_cache import LayerCache
from inference_server.execution.paged_step import Region
from inference_server.execution.triton_kernels import attention as kernels

MAX_SPLITS = 32  # parts that a decode's keys are read in
MIN_DOT = 16  # Triton's matrix products have at least this many rows and columns
_PROGRAMS_PER_PROCESSOR = 4
_LONG_CHUNK = 128  # new tokens from which on a program takes more query rows


class TritonAttention:
    """Stateless. `num_processors`: streaming multiprocessors that a decode should keep busy."""

    def __init__(self, num_processors: int) -> None:
        self._num_processors = num_processors

    def store(self, call: AttentionCall, cache: LayerCache, slots: torch.Tensor) -> None:
        """Write the step's keys and values. slots [num_tokens]; negative ones are skipped."""
        key, value = _rows(call.key), _rows(call.value)
        num_tokens, num_kv_heads, key_dim = key.shape
        value_dim = value.shape[2]
        kernels.store_tokens[(num_tokens, num_kv_heads)](
            key,
            value,
            cache.keys,
            cache.values,
            slots,
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            num_kv_heads,
            KEY_DIM=key_dim,
            KEY_PAD=_padded(key_dim),
            VALUE_DIM=value_dim,
            VALUE_PAD=_padded(value_dim),
        )

    def num_splits(self, num_seqs: int, num_kv_heads: int) -> int:
        """Parts per decode, a power of two: enough programs for the whole device, and no more."""
        wanted = _PROGRAMS_PER_PROCESSOR * self._num_processors // (num_seqs * num_kv_heads)
        return int(min(MAX_SPLITS, triton.next_power_of_2(max(1, wanted))))

    def decode(
        self,
        call: AttentionCall,
        cache: LayerCache,
        region: Region,
        block_table: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """One new token per sequence. `output` [num_tokens of the step, num_heads, value_dim], contiguous."""
        query = _rows(call.query[region.first_row : region.last_row])
        target = output[region.first_row : region.last_row]
        num_seqs, num_heads, _ = query.shape
        num_kv_heads = call.key.shape[1]
        value_dim = target.shape[2]
        splits = self.num_splits(num_seqs, num_kv_heads)
        if splits == 1:
            partial = partial_max = partial_sum = target
        else:
            shape = (num_seqs, num_heads, splits)
            partial = query.new_empty((*shape, _padded(value_dim)), dtype=torch.float32)
            partial_max = query.new_empty(shape, dtype=torch.float32)
            partial_sum = torch.empty_like(partial_max)
        group = num_heads // num_kv_heads
        self._attend(
            (num_seqs, num_kv_heads, splits),
            call,
            cache,
            region,
            block_table,
            query,
            target,
            (partial, partial_max, partial_sum),
            rows=max(MIN_DOT, triton.next_power_of_2(group)),
            queries=1,
            splits=splits,
            decode=True,
        )
        if splits > 1:
            kernels.reduce_splits[(num_seqs, num_heads)](
                target,
                partial,
                partial_max,
                partial_sum,
                call.sinks if call.sinks is not None else target,
                num_heads,
                VALUE_DIM=value_dim,
                VALUE_PAD=_padded(value_dim),
                SPLITS=splits,
                SINKS=call.sinks is not None,
            )

    def chunks(
        self,
        call: AttentionCall,
        cache: LayerCache,
        region: Region,
        block_table: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Any number of new tokens per sequence; arguments as in `decode`."""
        query = _rows(call.query[region.first_row : region.last_row])
        target = output[region.first_row : region.last_row]
        num_tokens, num_heads, _ = query.shape
        num_kv_heads = call.key.shape[1]
        group = num_heads // num_kv_heads
        rows = max(64 if region.max_query_len >= _LONG_CHUNK else 32, triton.next_power_of_2(group))
        queries = rows // group
        self._attend(
            (num_tokens // queries + region.num_seqs, num_kv_heads, 1),
            call,
            cache,
            region,
            block_table,
            query,
            target,
            (target, target, target),
            rows=rows,
            queries=queries,
            splits=1,
            decode=False,
        )

    def _attend(
        self,
        grid: tuple[int, int, int],
        call: AttentionCall,
        cache: LayerCache,
        region: Region,
        block_table: torch.Tensor,
        query: torch.Tensor,
        target: torch.Tensor,
        partials: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        *,
        rows: int,
        queries: int,
        splits: int,
        decode: bool,
    ) -> None:
        num_kv_heads, key_dim = cache.keys.shape[2:]
        value_dim = cache.values.shape[3]
        wide = max(_padded(key_dim), _padded(value_dim)) > 128 or query.dtype == torch.float32
        kernels.attend[grid](
            query,
            cache.keys,
            cache.values,
            target,
            *partials,
            block_table,
            region.table_rows,
            region.query_starts,
            region.kv_lengths,
            call.sinks if call.sinks is not None else query,
            call.scale,
            call.softcap or 1.0,
            query.stride(0),
            query.stride(1),
            block_table.stride(0),
            region.num_seqs,
            query.shape[1],
            num_kv_heads,
            GROUP=query.shape[1] // num_kv_heads,
            KEY_DIM=key_dim,
            KEY_PAD=_padded(key_dim),
            VALUE_DIM=value_dim,
            VALUE_PAD=_padded(value_dim),
            BLOCK_SIZE=cache.keys.shape[1],
            TILE=32 if wide else 64,
            ROWS=rows,
            QUERIES=queries,
            WINDOW=call.window or 0,
            CAPPED=call.softcap is not None,
            SINKS=call.sinks is not None,
            SPLITS=splits,
            DECODE=decode,
            num_warps=4,
            num_stages=2,
        )


def _padded(dim: int) -> int:
    return int(max(MIN_DOT, triton.next_power_of_2(dim)))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of one head side by side, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
