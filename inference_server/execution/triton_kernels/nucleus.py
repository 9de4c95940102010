"""The nucleus (top-p) threshold of each row, without sorting and without a word to the host."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _order(value):
    """A float32 as an int32 of the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _mass_above(logits, row, vocab_size, best, bound, TILE: tl.constexpr):
    """Weight of all tokens whose order is above `bound`; the likeliest token weighs 1."""
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, vocab_size, TILE):
        place = start + tl.arange(0, TILE)
        value = tl.load(logits + row * vocab_size + place, mask=place < vocab_size, other=float("-inf"))
        total += tl.where(_order(value) > bound, tl.exp(value - best), 0.0)
    return tl.sum(total, 0)


@triton.jit
def nucleus_thresholds(
    logits,  # [num_rows, vocab_size] float32, contiguous
    top_p,  # [num_rows] float32
    thresholds,  # [num_rows] float32
    vocab_size,
    TILE: tl.constexpr,
):
    """The smallest logit that stays: all likelier tokens together have less than `top_p`.

    Found by bisection over the ordered bits of a float32, which ends exactly on one.
    """
    row = tl.program_id(0).to(tl.int64)
    peak = tl.full([TILE], float("-inf"), tl.float32)
    for start in range(0, vocab_size, TILE):
        place = start + tl.arange(0, TILE)
        value = tl.load(logits + row * vocab_size + place, mask=place < vocab_size, other=float("-inf"))
        peak = tl.maximum(peak, value)
    best = tl.max(peak, 0)
    p = tl.load(top_p + row)
    # exp(-104) is 0 in float32: everything that has any weight lies between these two.
    low = _order(best - 104.0).to(tl.int64)
    high = _order(best).to(tl.int64)
    wanted = p * _mass_above(logits, row, vocab_size, best, low.to(tl.int32), TILE)
    while low + 1 < high:
        middle = (low + high) >> 1
        above = _mass_above(logits, row, vocab_size, best, middle.to(tl.int32), TILE)
        if above < wanted:
            high = middle
        else:
            low = middle
    bits = high.to(tl.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    threshold = bits.to(tl.float32, bitcast=True)
    tl.store(thresholds + row, tl.where(p < 1.0, threshold, float("-inf")))
