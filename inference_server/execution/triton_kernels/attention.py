"""The Triton kernels of paged attention: store, attend, reduce. Compiled at first use.

Safe in CUDA graphs: grids follow from padded sizes, and all lengths are read from device tensors. Softmax is
the online one (arXiv:1805.02867) in base 2; a decode's keys may be split over programs whose partial results
`reduce_splits` joins (flash decoding).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def store_tokens(
    new_keys,  # [num_tokens, num_kv_heads, KEY_DIM]
    new_values,  # [num_tokens, num_kv_heads, VALUE_DIM]
    keys,  # [num_blocks, BLOCK_SIZE, num_kv_heads, KEY_DIM], contiguous, as are values
    values,
    slots,  # [num_tokens]
    key_stride_token,
    key_stride_head,
    value_stride_token,
    value_stride_head,
    num_kv_heads,
    KEY_DIM: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
):
    """Write one head of one new token. A negative slot is padding."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        place = slot * num_kv_heads + head
        d = tl.arange(0, KEY_PAD)
        key = tl.load(new_keys + token * key_stride_token + head * key_stride_head + d, mask=d < KEY_DIM)
        tl.store(keys + place * KEY_DIM + d, key, mask=d < KEY_DIM)
        d = tl.arange(0, VALUE_PAD)
        value = tl.load(
            new_values + token * value_stride_token + head * value_stride_head + d, mask=d < VALUE_DIM
        )
        tl.store(values + place * VALUE_DIM + d, value, mask=d < VALUE_DIM)


@triton.jit
def _owner(query_starts, num_seqs, program, QUERIES: tl.constexpr):
    """The sequence that query block `program` belongs to; each has room for its blocks and one more."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_starts + middle) // QUERIES + middle <= program:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=["table_width", "num_seqs"])
def attend(
    query,  # [num_tokens, num_heads, KEY_DIM]
    keys,  # [num_blocks, BLOCK_SIZE, num_kv_heads, KEY_DIM], contiguous, as are values and output
    values,
    output,  # [num_tokens, num_heads, VALUE_DIM]
    partial,  # with SPLITS > 1: [num_tokens, num_heads, SPLITS, VALUE_PAD] float32
    partial_max,  # [num_tokens, num_heads, SPLITS] float32
    partial_sum,  # the same
    block_table,  # [num_rows, width]
    table_rows,  # [num_seqs]
    query_starts,  # [num_seqs + 1]; not read by DECODE
    kv_lengths,  # [num_seqs]
    sinks,  # [num_heads], with SINKS
    scale,
    softcap,
    query_stride_token,
    query_stride_head,
    table_width,
    num_seqs,
    num_heads,
    num_kv_heads,
    GROUP: tl.constexpr,  # query heads per key head
    KEY_DIM: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,  # keys at a time
    ROWS: tl.constexpr,  # query rows of a program: QUERIES tokens × GROUP heads, padded
    QUERIES: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    SPLITS: tl.constexpr,
    DECODE: tl.constexpr,  # token i is sequence i's only new one
):
    """QUERIES new tokens of one sequence, for one key head and one of SPLITS parts of the keys."""
    program = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    if DECODE:
        seq = program
        first_token = program
        query_len = 1
        first_query = 0
    else:
        seq = _owner(query_starts, num_seqs, program, QUERIES)
        first_token = tl.load(query_starts + seq)
        query_len = tl.load(query_starts + seq + 1) - first_token
        first_query = (program - (first_token // QUERIES + seq)) * QUERIES
    kv_len = tl.load(kv_lengths + seq)
    rows = tl.arange(0, ROWS)
    query_index = first_query + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    row_mask = (query_index < query_len) & (rows < QUERIES * GROUP)
    token = (first_token + query_index).to(tl.int64)
    dk = tl.arange(0, KEY_PAD)
    dv = tl.arange(0, VALUE_PAD)
    out_mask = row_mask[:, None] & (dv < VALUE_DIM)[None, :]
    if first_query < query_len:
        q = tl.load(
            query + token[:, None] * query_stride_token + head[:, None] * query_stride_head + dk[None, :],
            mask=row_mask[:, None] & (dk < KEY_DIM)[None, :],
            other=0.0,
        )
        position = kv_len - query_len + query_index
        best = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, VALUE_PAD], tl.float32)
        # Keys that any row of this program sees: [low, high).
        high = tl.minimum(kv_len, kv_len - query_len + first_query + QUERIES)
        low = 0
        if WINDOW > 0:
            low = tl.maximum(0, kv_len - query_len + first_query - WINDOW + 1) // TILE * TILE
        num_tiles = (tl.maximum(high - low, 0) + TILE - 1) // TILE
        per_split = (num_tiles + SPLITS - 1) // SPLITS
        table = block_table + tl.load(table_rows + seq).to(tl.int64) * table_width
        for tile in range(split * per_split, tl.minimum(num_tiles, (split + 1) * per_split)):
            key_position = low + tile * TILE + tl.arange(0, TILE)
            key_mask = key_position < high
            block = tl.load(table + key_position // BLOCK_SIZE, mask=key_mask, other=0).to(tl.int64)
            place = (block * BLOCK_SIZE + key_position % BLOCK_SIZE) * num_kv_heads + kv_head
            k = tl.load(
                keys + place[None, :] * KEY_DIM + dk[:, None],
                mask=key_mask[None, :] & (dk < KEY_DIM)[:, None],
                other=0.0,
            )
            scores = tl.dot(q, k, input_precision="ieee") * scale
            if CAPPED:
                scores = softcap * (2.0 / (1.0 + tl.exp(-2.0 * scores / softcap)) - 1.0)  # tanh
            seen = key_mask[None, :] & (key_position[None, :] <= position[:, None]) & row_mask[:, None]
            if WINDOW > 0:
                seen = seen & (key_position[None, :] > (position - WINDOW)[:, None])
            scores = tl.where(seen, scores * LOG2E, float("-inf"))
            best_now = tl.maximum(best, tl.max(scores, 1))
            shift = tl.where(best_now == float("-inf"), 0.0, best_now)
            weights = tl.exp2(scores - shift[:, None])
            decay = tl.exp2(best - shift)
            v = tl.load(
                values + place[:, None] * VALUE_DIM + dv[None, :],
                mask=key_mask[:, None] & (dv < VALUE_DIM)[None, :],
                other=0.0,
            )
            total = total * decay + tl.sum(weights, 1)
            acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            best = best_now
        if SPLITS == 1:
            if SINKS:
                sink = tl.load(sinks + head, mask=row_mask, other=0.0).to(tl.float32) * LOG2E
                shift = tl.maximum(best, sink)
                decay = tl.exp2(best - shift)
                total = total * decay + tl.exp2(sink - shift)
                acc = acc * decay[:, None]
            acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
            tl.store(
                output + (token * num_heads + head)[:, None] * VALUE_DIM + dv[None, :],
                acc.to(output.dtype.element_ty),
                mask=out_mask,
            )
        else:
            part = (token * num_heads + head) * SPLITS + split
            tl.store(partial + part[:, None] * VALUE_PAD + dv[None, :], acc, mask=row_mask[:, None])
            tl.store(partial_max + part, best, mask=row_mask)
            tl.store(partial_sum + part, total, mask=row_mask)


@triton.jit
def reduce_splits(
    output,  # [num_tokens, num_heads, VALUE_DIM], contiguous
    partial,  # as in `attend`
    partial_max,
    partial_sum,
    sinks,
    num_heads,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Join the parts of one head of one decoded token. A padding token has no weight anywhere and gets 0."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = (token * num_heads + head) * SPLITS + tl.arange(0, SPLITS)
    dv = tl.arange(0, VALUE_PAD)
    best = tl.load(partial_max + part)
    shift = tl.max(best, 0)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        shift = tl.maximum(shift, sink)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    weights = tl.exp2(best - shift)
    total = tl.sum(tl.load(partial_sum + part) * weights, 0)
    if SINKS:
        total += tl.exp2(sink - shift)
    acc = tl.sum(tl.load(partial + part[:, None] * VALUE_PAD + dv[None, :]) * weights[:, None], 0)
    acc = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(
        output + (token * num_heads + head) * VALUE_DIM + dv,
        acc.to(output.dtype.element_ty),
        mask=dv < VALUE_DIM,
    )
