"""Paged attention with torch's scaled_dot_product_attention: the CPU's backend, and any device's reference.

Decode sequences of similar length share one padded call over gathered blocks, with the query heads of a
group as query rows, so that keys are read once per group. Chunks run one by one: a cold chunk attends to
its own keys without touching the cache, a later one to its gathered blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.inputs import Chunk, DecodeGroup, StepInput
from inference_server.execution.kv_cache import LayerCache


class SdpaBackend:
    """Stateless; masks are cached on the step, since all layers with one window share them."""

    def attend(self, call: AttentionCall, cache: LayerCache, step: StepInput) -> torch.Tensor:
        """See `AttentionBackend.attend`."""
        cache.store(step.slots, call.key, call.value)
        num_tokens, num_heads, _ = call.query.shape
        output = call.query.new_empty((num_tokens, num_heads, call.value.shape[-1]))
        for index, chunk in enumerate(step.chunks):
            output[chunk.first_row : chunk.last_row] = self._chunk(call, cache, step, index, chunk)
        for index, group in enumerate(step.groups):
            attended = self._decode(call, cache, step, index, group)
            output.index_copy_(0, group.rows, attended)
        return output

    def _chunk(
        self, call: AttentionCall, cache: LayerCache, step: StepInput, index: int, chunk: Chunk
    ) -> torch.Tensor:
        rows = slice(chunk.first_row, chunk.last_row)
        query = call.query[rows].transpose(0, 1)[None]  # [1, num_heads, n, key_dim]
        plain = call.softcap is None and call.sinks is None
        windowed = call.window is not None and chunk.total > call.window
        if chunk.start == 0 and plain and not windowed:
            key = call.key[rows].transpose(0, 1)[None]
            value = call.value[rows].transpose(0, 1)[None]
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=call.scale, enable_gqa=True
            )
        else:
            keys, values = cache.gather(chunk.block_table)
            keys, values = keys[:, :, : chunk.total], values[:, :, : chunk.total]
            mask = _cached(step, index, call.window, lambda: _chunk_mask(chunk, call.window, query.device))
            attended = _masked(query, keys, values, mask, call)
        return attended[0].transpose(0, 1)

    def _decode(
        self, call: AttentionCall, cache: LayerCache, step: StepInput, index: int, group: DecodeGroup
    ) -> torch.Tensor:
        query = call.query.index_select(0, group.rows)  # [num_seqs, num_heads, key_dim]
        keys, values = cache.gather(group.block_table)  # [num_seqs, num_kv_heads, width * block_size, dim]
        num_seqs, num_heads, key_dim = query.shape
        mask = _cached(step, -1 - index, call.window, lambda: _decode_mask(group, keys.shape[2], call.window))
        if call.softcap is None and call.sinks is None:
            num_kv_heads = keys.shape[1]
            rows = query.view(num_seqs, num_kv_heads, num_heads // num_kv_heads, key_dim)
            attended = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=call.scale)
            return attended.reshape(num_seqs, num_heads, -1)
        return _masked(query.unsqueeze(2), keys, values, mask, call).squeeze(2)


def _cached(
    step: StepInput, index: int, window: int | None, make: Callable[[], torch.Tensor]
) -> torch.Tensor:
    mask = step.masks.get((index, window))
    if mask is None:
        mask = step.masks[index, window] = make()
    return mask


def _chunk_mask(chunk: Chunk, window: int | None, device: torch.device) -> torch.Tensor:
    """Bottom-right causal, [1, 1, num_new_tokens, total]."""
    queries = torch.arange(chunk.start, chunk.total, device=device)[:, None]
    keys = torch.arange(chunk.total, device=device)[None, :]
    allowed = keys <= queries
    if window is not None:
        allowed &= keys > queries - window
    return allowed[None, None]


def _decode_mask(group: DecodeGroup, width: int, window: int | None) -> torch.Tensor:
    """Each sequence sees its own length, [num_seqs, 1, 1, width]."""
    keys = torch.arange(width, device=group.lengths.device)[None, :]
    lengths = group.lengths[:, None]
    allowed = keys < lengths
    if window is not None:
        allowed &= keys >= lengths - window
    return allowed[:, None, None, :]


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, call: AttentionCall
) -> torch.Tensor:
    """Attention under a boolean mask; written out where soft caps or sinks rule the fused call out."""
    if call.softcap is None and call.sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=call.scale, enable_gqa=True
        )
    group = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(group, dim=1).float()
    values = value.repeat_interleave(group, dim=1).float()
    scores = torch.matmul(query.float(), keys.transpose(-1, -2)) * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if call.sinks is not None:
        sinks = call.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.matmul(weights, values).to(query.dtype)
