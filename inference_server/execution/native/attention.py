"""Attention over the paged cache: writing keys and values, and one task of queries against them.

The cache is flat, float32 or bfloat16 bits: [layer][block][kv head][keys | values], a block being 16 tokens.
Keys are stored transposed, [head_dim][16 tokens], and values as panels, [head_dim / 16][16 tokens][16]: both
are what a dense tile reads, so that neither scores nor outputs need sums across lanes.

A task is one kv head and a tile of consecutive tokens of one sequence; its rows are (token, query head of the
group). It walks the keys in chunks with a running maximum and sum (Milakov and Gimelshein, arXiv:1805.02867).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inference_server.execution.native.linear import compiled, dense_rows_bfloat16, dense_rows_float32
from inference_server.execution.native.model import (
    BLOCK,
    KEY_NORM,
    NONE,
    QKV_BIAS,
    QUERY_NORM,
    ROPE,
    WINDOW,
)
from inference_server.execution.native.rows import inverse_rms
from inference_server.execution.native.vector import (
    LANES,
    add,
    address,
    broadcast,
    exp,
    load,
    load_one,
    max_lanes,
    maximum,
    multiply,
    multiply_add,
    prefetch_line,
    store,
    store_one,
    subtract,
    sum_lanes,
)

CHUNK = 128  # keys per pass: scores of a task stay in the first-level cache
MAX_TASK_ROWS = 36  # rows of an attention task, unless one token's group alone has more
_BLOCKS_PER_CHUNK = CHUNK // BLOCK
_BLOCKS_AHEAD = 2  # blocks of the next task to fetch per 16 values of a head
_LINE_BYTES = 64
_MASKED = np.float32(-1e30)


@compiled
def _multiply_tiles(
    cache: Any, rows: int, x: int, x_stride: int, panels: int, table: int, panel_stride: int,
    segments: int, columns: int, out: int, out_stride: int, adds: bool,
) -> None:  # fmt: skip
    """`linear.dense_rows_…` for the number format of the cache, which is known when this is compiled."""
    if cache.itemsize == 2:
        dense_rows_bfloat16(
            rows, x, x_stride, panels, table, panel_stride, segments, columns, out, out_stride, adds, False
        )
    else:
        dense_rows_float32(
            rows, x, x_stride, panels, table, panel_stride, segments, columns, out, out_stride, adds, False
        )


@compiled
def _rotate(
    source: Any,
    start: int,
    head_dim: int,
    factor: Any,
    weights: Any,
    weight: int,
    rope: Any,
    angle: int,
    out: Any,
    out_start: int,
) -> None:
    """out = rotary embedding of (source * factor [* weights]); halves are rotated against each other."""
    half = head_dim // 2
    for k in range(0, half, LANES):
        a = multiply(load(source, start + k), factor)
        b = multiply(load(source, start + half + k), factor)
        if weight != NONE:
            a = multiply(a, load(weights, weight + k))
            b = multiply(b, load(weights, weight + half + k))
        cosine, sine = load(rope, angle + k), load(rope, angle + half + k)
        store(out, out_start + k, subtract(multiply(a, cosine), multiply(b, sine)))
        store(out, out_start + half + k, multiply_add(b, cosine, multiply(a, sine)))


@compiled
def add_bias(model: Any, scratch: Any, layer: int, row: int) -> None:
    """Add the layer's bias to one row of `qkv`, if it has one."""
    bias = model.layers[layer, QKV_BIAS]
    if bias == NONE:
        return
    qkv = scratch.qkv.reshape(-1)
    start = row * scratch.qkv.shape[1]
    for k in range(0, (model.num_heads + 2 * model.num_kv_heads) * model.head_dim, LANES):
        store(qkv, start + k, add(load(qkv, start + k), load(model.vectors, bias + k)))


@compiled
def store_keys_and_values(
    model: Any, batch: Any, scratch: Any, cache: Any, blocks: int, layer: int, row: int, thread: int
) -> None:
    """Write one token's keys and values, all heads, into its block.

    The last token of a sequence clears the values after its own in a block that the step begins, so that
    nothing stale (an infinity, say) is ever multiplied by a zero weight.
    """
    dim = model.head_dim
    position = batch.positions[row]
    sequence = batch.sequence[row]
    block = batch.block_tables[sequence, position // BLOCK]
    slot = position % BLOCK
    size = dim * BLOCK
    qkv = scratch.qkv.reshape(-1)
    rotated = scratch.queries[thread]
    norm = model.layers[layer, KEY_NORM]
    angle = model.layers[layer, ROPE] + position * dim
    is_last = row + 1 == batch.sequence.size or batch.sequence[row + 1] != sequence
    is_chunk = row > 0 and batch.sequence[row - 1] == sequence
    first_cleared = slot + 1 if is_last and (slot == 0 or is_chunk) else BLOCK
    for head in range(model.num_kv_heads):
        key = row * scratch.qkv.shape[1] + (model.num_heads + head) * dim
        value = key + model.num_kv_heads * dim
        factor = broadcast(np.float32(1.0))
        if norm != NONE:
            factor = broadcast(inverse_rms(qkv, key, dim, model.norm_epsilon))
        _rotate(qkv, key, dim, factor, model.vectors, norm, model.rope, angle, rotated, 0)
        place = ((layer * blocks + block) * model.num_kv_heads + head) * 2 * size
        _scatter(cache, place + slot, rotated, dim)
        for k in range(0, dim, LANES):
            panel = place + size + k * BLOCK
            store(cache, panel + slot * LANES, load(qkv, value + k))
            for empty in range(first_cleared, BLOCK):
                store(cache, panel + empty * LANES, broadcast(np.float32(0.0)))


@compiled
def _scatter(cache: Any, place: int, values: Any, size: int) -> None:
    """Write a key, one number per row of 16 tokens."""
    for k in range(size):
        store_one(cache, place + k * BLOCK, load_one(values, k))


@compiled
def attend(
    model: Any,
    batch: Any,
    scratch: Any,
    cache: Any,
    blocks: int,
    layer: int,
    tile: int,
    head: int,
    next_tile: int,
    next_head: int,
    thread: int,
) -> None:
    """One task: the queries of `batch.tiles[tile]` for one kv head, into `scratch.attention`.

    While it multiplies with values, the first blocks of the next task are on their way from memory.
    """
    dim = model.head_dim
    group = model.num_heads // model.num_kv_heads
    first, last = batch.tiles[tile, 0], batch.tiles[tile, 1]
    rows = (last - first) * group
    window = model.layers[layer, WINDOW]
    queries, scores, values, maxima = (
        scratch.queries[thread],
        scratch.scores[thread],
        scratch.values[thread],
        scratch.maxima[thread],
    )
    _load_queries(model, batch, scratch, layer, first, last, head, queries)
    for row in range(rows):
        maxima[row], maxima[rows + row] = _MASKED, np.float32(0.0)
    size = dim * BLOCK
    block_bytes = 2 * size * cache.itemsize  # a head's keys and values lie together
    block_stride = model.num_kv_heads * block_bytes
    keys = address(cache, (layer * blocks * model.num_kv_heads + head) * 2 * size)
    next_keys = keys + (next_head - head) * block_bytes
    table = batch.block_tables.reshape(-1)
    start, num_blocks = _span(batch, tile, window)
    next_start, next_num_blocks = _span(batch, next_tile, window)
    chunk_position = (start - batch.sequence[first] * batch.block_tables.shape[1]) * BLOCK
    for done in range(0, num_blocks, _BLOCKS_PER_CHUNK):
        chunk = min(_BLOCKS_PER_CHUNK, num_blocks - done)
        places = address(table, start + done)
        for index in range(chunk):
            following = start + min(done + index + 1, num_blocks - 1)
            _prefetch(keys + table[following] * block_stride, block_bytes)
            _multiply_tiles(
                cache, rows, address(queries, 0), dim, keys, places + 8 * index, block_stride, 1, dim,
                address(scores, index * BLOCK), CHUNK, False,
            )  # fmt: skip
        for row in range(rows):
            position = batch.positions[first + row // group] - chunk_position
            low = 0 if window == 0 else max(0, position + 1 - window)
            _soften(
                scores, row * CHUNK, chunk * BLOCK, low, min(position + 1, chunk * BLOCK), maxima, row, rows,
                values, row * dim, dim,
            )  # fmt: skip
        for k in range(0, dim, LANES):
            if done == 0:
                ahead = k // LANES * _BLOCKS_AHEAD
                for index in range(ahead, min(ahead + _BLOCKS_AHEAD, next_num_blocks)):
                    _prefetch(next_keys + table[next_start + index] * block_stride, block_bytes)
            _multiply_tiles(
                cache, rows, address(scores, 0), CHUNK, keys + (size + k * BLOCK) * cache.itemsize, places,
                block_stride, chunk, BLOCK, address(values, k), dim, done > 0,
            )  # fmt: skip
        chunk_position += CHUNK
    out = scratch.attention.reshape(-1)
    for row in range(rows):
        inverse = broadcast(np.float32(1.0) / maxima[rows + row])
        start = (first + row // group) * scratch.attention.shape[1] + (head * group + row % group) * dim
        for k in range(0, dim, LANES):
            store(out, start + k, multiply(load(values, row * dim + k), inverse))


@compiled
def _span(batch: Any, tile: int, window: int) -> tuple[int, int]:
    """(place in `block_tables` of the first block that a task reads, number of blocks)."""
    first, last = batch.tiles[tile, 0], batch.tiles[tile, 1]
    begin = 0 if window == 0 else max(0, batch.positions[first] + 1 - window) // BLOCK
    end = batch.positions[last - 1] // BLOCK + 1
    return batch.sequence[first] * batch.block_tables.shape[1] + begin, end - begin


@compiled
def _load_queries(
    model: Any, batch: Any, scratch: Any, layer: int, first: int, last: int, head: int, queries: Any
) -> None:
    """Normalise, rotate and scale the queries of a task → queries [(token, group)][head_dim]."""
    dim = model.head_dim
    group = model.num_heads // model.num_kv_heads
    qkv = scratch.qkv.reshape(-1)
    norm = model.layers[layer, QUERY_NORM]
    scale = np.float32(model.attention_scale)
    row = 0
    for token in range(first, last):
        angle = model.layers[layer, ROPE] + batch.positions[token] * dim
        for g in range(group):
            start = token * scratch.qkv.shape[1] + (head * group + g) * dim
            factor = scale
            if norm != NONE:
                factor = scale * inverse_rms(qkv, start, dim, model.norm_epsilon)
            _rotate(
                qkv, start, dim, broadcast(factor), model.vectors, norm, model.rope, angle, queries, row * dim
            )
            row += 1


@compiled
def _soften(
    scores: Any,
    start: int,
    size: int,
    low: int,
    high: int,
    maxima: Any,
    row: int,
    rows: int,
    values: Any,
    value_start: int,
    dim: int,
) -> None:
    """Scores of one row in one chunk → unnormalised weights; rescales what earlier chunks have left.

    Keys outside [low, high) get no weight. `maxima` holds each row's maximum, then each row's sum.
    """
    if high <= low:
        for k in range(0, size, LANES):
            store(scores, start + k, broadcast(np.float32(0.0)))
        return
    for k in range(low):
        store_one(scores, start + k, _MASKED)
    for k in range(high, size):
        store_one(scores, start + k, _MASKED)
    largest = broadcast(maxima[row])
    for k in range(start, start + size, LANES):
        largest = maximum(largest, load(scores, k))
    top = max_lanes(largest)
    if top > maxima[row] and maxima[rows + row] > np.float32(0.0):
        factor = exp(broadcast(maxima[row] - top))
        maxima[rows + row] *= max_lanes(factor)
        for k in range(value_start, value_start + dim, LANES):
            store(values, k, multiply(load(values, k), factor))
    maxima[row] = top
    shift = broadcast(top)
    total = broadcast(np.float32(0.0))
    for k in range(start, start + size, LANES):
        weight = exp(subtract(load(scores, k), shift))
        total = add(total, weight)
        store(scores, k, weight)
    maxima[rows + row] += sum_lanes(total)


@compiled
def _prefetch(place: int, num_bytes: int) -> None:
    for line in range(place, place + num_bytes, _LINE_BYTES):
        prefetch_line(line)
