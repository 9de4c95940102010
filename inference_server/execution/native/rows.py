"""What happens to single rows between matrix products: norms, activations, 16-bit quantization, embedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inference_server.checkpoints.native_weights import BFLOAT16, BITS_4, BITS_8
from inference_server.execution.native.linear import compiled, panel_bytes
from inference_server.execution.native.model import (
    COLUMNS,
    FORMAT,
    GELU_TANH,
    OFFSET,
)
from inference_server.execution.native.tiles import GROUP, GROUP_BYTES_4, GROUP_BYTES_8, PANEL
from inference_server.execution.native.vector import (
    LANES,
    absolute,
    add,
    broadcast,
    divide,
    exp,
    half_to_float,
    load,
    load_one,
    max_lanes,
    maximum,
    multiply,
    multiply_add,
    rint,
    store,
    store_one,
    store_rounded_int16,
    subtract,
    sum_lanes,
)

_LARGEST = np.float32(32767.0)
_SMALLEST_SCALE = np.float32(1e-30)  # a row of zeros stays a row of zeros


@compiled
def inverse_rms(values: Any, start: int, size: int, epsilon: float) -> Any:
    """1 / sqrt(mean of squares + epsilon)."""
    squares = broadcast(np.float32(0.0))
    for k in range(start, start + size, LANES):
        value = load(values, k)
        squares = multiply_add(value, value, squares)
    return np.float32(1.0 / math.sqrt(sum_lanes(squares) / np.float32(size) + epsilon))


@compiled
def normalise(
    source: Any, start: int, size: int, weights: Any, weight: int, epsilon: float, out: Any, out_start: int
) -> None:
    """RMS norm of one row."""
    factor = broadcast(inverse_rms(source, start, size, epsilon))
    for k in range(0, size, LANES):
        store(
            out, out_start + k, multiply(multiply(load(source, start + k), factor), load(weights, weight + k))
        )


@compiled
def gated(gate_up: Any, start: int, size: int, activation: int, out: Any, out_start: int) -> None:
    """out = act(gate) * up, for one row that holds gate and then up.

    Both activations are x * sigmoid(y): y is x for SiLU, 2 sqrt(2/pi) (x + 0.044715 x³) for tanh-GELU.
    """
    one = broadcast(np.float32(1.0))
    zero = broadcast(np.float32(0.0))
    for k in range(0, size, LANES):
        gate = load(gate_up, start + k)
        argument = gate
        if activation == GELU_TANH:
            cubic = multiply(multiply(gate, gate), multiply(gate, broadcast(np.float32(0.044715))))
            argument = multiply(add(gate, cubic), broadcast(np.float32(1.5957691216057308)))
        sigmoid = divide(one, add(one, exp(subtract(zero, argument))))
        store(out, out_start + k, multiply(multiply(gate, sigmoid), load(gate_up, start + size + k)))


@compiled
def quantize(scratch: Any, row: int, size: int, with_sums: bool) -> None:
    """Fill `quantized`, `factors` and, if asked to, `sums` of one row from `inputs`."""
    inputs, quantized, sums = (
        scratch.inputs.reshape(-1),
        scratch.quantized.reshape(-1),
        scratch.sums.reshape(-1),
    )
    start = row * scratch.inputs.shape[1]
    largest = broadcast(np.float32(0.0))
    for k in range(start, start + size, LANES):
        largest = maximum(largest, absolute(load(inputs, k)))
    top = max(max_lanes(largest), _SMALLEST_SCALE)
    scratch.factors[row] = top / _LARGEST
    inverse = broadcast(_LARGEST / top)
    first_sum = row * scratch.sums.shape[1]
    for group in range(size // GROUP):
        k = start + group * GROUP
        low = rint(multiply(load(inputs, k), inverse))
        high = rint(multiply(load(inputs, k + LANES), inverse))
        store_rounded_int16(quantized, k, low)
        store_rounded_int16(quantized, k + LANES, high)
        if with_sums:
            store_one(sums, first_sum + group, sum_lanes(add(low, high)))


@compiled
def embed(model: Any, token: int, out: Any, out_start: int) -> None:
    """Write the embedding of one token, read out of its panel, times the model's embedding scale."""
    matrix = model.embedding
    format_ = model.matrices[matrix, FORMAT]
    columns = model.matrices[matrix, COLUMNS]
    arena = model.arena
    start = model.matrices[matrix, OFFSET] + token // PANEL * panel_bytes(format_, columns)
    lane = token % PANEL
    scale = np.float32(model.embedding_scale)
    if format_ == BITS_4:
        for k in range(columns):
            group = start + k // GROUP * GROUP_BYTES_4
            inside = k % GROUP
            word = group + PANEL * 4 + (inside // 8 * PANEL + lane) * 4
            byte = arena[word + inside % 2 * 2 + inside % 8 // 4]
            code = np.float32((byte >> (inside % 4 // 2 * 4)) & 15)
            value = half_to_float(arena, group + lane * 2) * code + half_to_float(
                arena, group + PANEL * 2 + lane * 2
            )
            out[out_start + k] = value * scale
    elif format_ == BITS_8:
        for k in range(columns):
            group = start + k // GROUP * GROUP_BYTES_8
            inside = k % GROUP
            word = group + PANEL * 2 + (inside // 4 * PANEL + lane) * 4
            code = np.float32(np.int8(arena[word + inside % 2 * 2 + inside % 4 // 2]))
            out[out_start + k] = half_to_float(arena, group + lane * 2) * code * scale
    elif format_ == BFLOAT16:
        words = arena.view(np.uint16)
        for k in range(columns):
            out[out_start + k] = load_one(words, start // 2 + k * PANEL + lane) * scale
    else:
        floats = arena.view(np.float32)
        for k in range(columns):
            out[out_start + k] = load_one(floats, start // 4 + k * PANEL + lane) * scale
