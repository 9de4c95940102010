"""Fused operations over tensors, with the meaning of transformers' own chains of small ones."""

from __future__ import annotations

import torch
import triton

from inference_server.execution.triton_kernels import fused as kernels

_TILE = 1024


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: float, round_first: bool
) -> torch.Tensor:
    """hidden [..., width] over its root mean square, times weight + offset."""
    width = hidden.shape[-1]
    rows = hidden.reshape(-1, width).contiguous()
    output = torch.empty_like(rows)
    if len(rows):
        kernels.rms_norm[(len(rows),)](
            rows,
            weight,
            output,
            eps,
            WIDTH=width,
            PAD=triton.next_power_of_2(width),
            OFFSET=offset,
            ROUND_FIRST=round_first,
            num_warps=8 if width > 2048 else 4,
        )
    return output.view(hidden.shape)


def silu_and_multiply(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up. Both [1, num_tokens, width], numbers of a row side by side."""
    _, num_tokens, width = gate.shape
    output = gate.new_empty(gate.shape)
    if num_tokens:
        kernels.silu_and_multiply[(num_tokens, triton.cdiv(width, _TILE))](
            gate, up, output, gate.stride(1), up.stride(1), width, TILE=_TILE
        )
    return output


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of whole heads. query, key [1, heads, num_tokens, dim]; cos, sin [1, num_tokens, dim].

    The results lie in memory token by token, as attention reads them.
    """
    _, num_heads, num_tokens, dim = query.shape
    num_kv_heads = key.shape[1]
    new_query = query.new_empty((num_tokens, num_heads, dim))
    new_key = key.new_empty((num_tokens, num_kv_heads, dim))
    if num_tokens:
        kernels.rotate[(num_tokens, num_heads + num_kv_heads)](
            query,
            key,
            cos.contiguous(),
            sin.contiguous(),
            new_query,
            new_key,
            query.stride(2),
            query.stride(1),
            key.stride(2),
            key.stride(1),
            num_heads,
            num_kv_heads,
            HALF=dim // 2,
            PAD=triton.next_power_of_2(dim // 2),
        )
    return new_query.transpose(0, 1)[None], new_key.transpose(0, 1)[None]
