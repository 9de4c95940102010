"""What stands between a layer's matrix products, one kernel each: RMS norm, SwiGLU, rotary embedding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm(
    rows,  # [num_rows, WIDTH], contiguous, as is output
    weight,  # [WIDTH]
    output,
    eps,
    WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    OFFSET: tl.constexpr,  # added to the weights; Gemma's are around 0
    ROUND_FIRST: tl.constexpr,  # to the output's dtype, before the weights; Llama's order
):
    """One row, in float32."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, PAD)
    value = tl.load(rows + row * WIDTH + d, mask=d < WIDTH, other=0.0).to(tl.float32)
    scale = tl.load(weight + d, mask=d < WIDTH, other=0.0).to(tl.float32) + OFFSET
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    if ROUND_FIRST:
        normed = normed.to(output.dtype.element_ty).to(tl.float32)
    tl.store(output + row * WIDTH + d, (normed * scale).to(output.dtype.element_ty), mask=d < WIDTH)


@triton.jit
def silu_and_multiply(
    gate,  # [num_rows, width], rows `gate_stride` apart
    up,
    output,  # [num_rows, width], contiguous
    gate_stride,
    up_stride,
    width,
    TILE: tl.constexpr,
):
    """silu(gate) * up; the first factor is rounded, as it is when it is computed alone."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * TILE + tl.arange(0, TILE)
    g = tl.load(gate + row * gate_stride + d, mask=d < width, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + d, mask=d < width, other=0.0).to(tl.float32)
    activated = (g / (1.0 + tl.exp(-g))).to(output.dtype.element_ty).to(tl.float32)
    tl.store(output + row * width + d, (activated * u).to(output.dtype.element_ty), mask=d < width)


@triton.jit
def rotate(
    query,  # [num_tokens, num_heads, 2 * HALF], any strides but the last
    key,  # [num_tokens, num_kv_heads, 2 * HALF]
    cos,  # [num_tokens, 2 * HALF], contiguous, as are sin and both outputs
    sin,
    new_query,
    new_key,
    query_stride_token,
    query_stride_head,
    key_stride_token,
    key_stride_head,
    num_heads,
    num_kv_heads,
    HALF: tl.constexpr,
    PAD: tl.constexpr,
):
    """Rotary embedding of one head of one token; heads beyond the query's are the key's."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, PAD)
    mask = d < HALF
    table = token * 2 * HALF + d
    cos_low = tl.load(cos + table, mask=mask).to(tl.float32)
    cos_high = tl.load(cos + table + HALF, mask=mask).to(tl.float32)
    sin_low = tl.load(sin + table, mask=mask).to(tl.float32)
    sin_high = tl.load(sin + table + HALF, mask=mask).to(tl.float32)
    if head < num_heads:
        source = query + token * query_stride_token + head * query_stride_head + d
        target = new_query + (token * num_heads + head) * 2 * HALF + d
    else:
        kv_head = head - num_heads
        source = key + token * key_stride_token + kv_head * key_stride_head + d
        target = new_key + (token * num_kv_heads + kv_head) * 2 * HALF + d
    low = tl.load(source, mask=mask).to(tl.float32)
    high = tl.load(source + HALF, mask=mask).to(tl.float32)
    tl.store(target, (low * cos_low - high * sin_low).to(new_query.dtype.element_ty), mask=mask)
    tl.store(target + HALF, (high * cos_high + low * sin_high).to(new_query.dtype.element_ty), mask=mask)
