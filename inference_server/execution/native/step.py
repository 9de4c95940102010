"""A whole forward pass as one compiled function, run by every thread of a team at the same time."""

from __future__ import annotations

from typing import Any

from inference_server.execution.native.attention import add_bias, attend, store_keys_and_values
from inference_server.execution.native.linear import multiply
from inference_server.execution.native.model import (
    AFTER_ATTENTION_NORM,
    AFTER_MLP_NORM,
    ATTENTION_OUT,
    BITS_8,
    DOWN,
    FORMAT,
    GATE_UP,
    INPUT_NORM,
    MLP_NORM,
    NONE,
    QKV,
)
from inference_server.execution.native.rows import compiled, embed, gated, normalise, quantize
from inference_server.execution.native.team import claim, meet
from inference_server.execution.native.vector import LANES, add, load, store

_PHASES_PER_LAYER = 10
_PHASES_OUTSIDE = 4


def num_phases(num_layers: int) -> int:
    """Phases of one step."""
    return num_layers * _PHASES_PER_LAYER + _PHASES_OUTSIDE


@compiled
def _add_normalised(model: Any, scratch: Any, row: int, norm: int) -> None:
    """hidden += norm(branch), for one row."""
    size = model.hidden_size
    branch, hidden = scratch.branch.reshape(-1), scratch.hidden.reshape(-1)
    start = row * size
    normalise(branch, start, size, model.vectors, norm, model.norm_epsilon, branch, start)
    for k in range(start, start + size, LANES):
        store(hidden, k, add(load(hidden, k), load(branch, k)))


@compiled
def _prepare_inputs(model: Any, scratch: Any, source: int, row: int, norm: int, matrix: int) -> None:
    """inputs[row] = norm(hidden[source]), quantized if `matrix` wants it so."""
    size = model.hidden_size
    normalise(
        scratch.hidden.reshape(-1), source * size, size, model.vectors, norm, model.norm_epsilon,
        scratch.inputs.reshape(-1), row * scratch.inputs.shape[1],
    )  # fmt: skip
    if model.matrices[matrix, FORMAT] >= BITS_8:
        quantize(scratch, row, size)


@compiled
def _prepare_attention_out(model: Any, scratch: Any, row: int, matrix: int) -> None:
    """inputs[row] = attention[row], quantized if `matrix` wants it so."""
    size = scratch.attention.shape[1]
    source, inputs = scratch.attention.reshape(-1), scratch.inputs.reshape(-1)
    start = row * scratch.inputs.shape[1]
    for k in range(0, size, LANES):
        store(inputs, start + k, load(source, row * size + k))
    if model.matrices[matrix, FORMAT] >= BITS_8:
        quantize(scratch, row, size)


@compiled
def _prepare_down(model: Any, scratch: Any, row: int, matrix: int) -> None:
    """inputs[row] = activation(gate) * up, quantized if `matrix` wants it so."""
    size = model.intermediate_size
    gated(
        scratch.gate_up.reshape(-1), row * 2 * size, size, model.activation,
        scratch.inputs.reshape(-1), row * scratch.inputs.shape[1],
    )  # fmt: skip
    if model.matrices[matrix, FORMAT] >= BITS_8:
        quantize(scratch, row, size)


def run_step(
    model: Any,
    batch: Any,
    scratch: Any,
    cache: Any,
    blocks: int,
    logits: Any,
    counters: Any,
    thread: int,
    threads: int,
) -> None:
    """Tokens → cache and logits; this thread's share.

    cache   flat, see attention.py; `blocks` blocks per layer
    logits  float32 [num_samples, vocabulary padded to panels]
    """
    rows = batch.tokens.size
    samples = batch.sample_rows.size
    row_task = max(1, rows // (4 * threads))
    num_layers = model.layers.shape[0]
    attention_tasks = batch.tiles.shape[0] * model.num_kv_heads
    phase = 0
    while True:
        first = claim(counters, phase, row_task)
        if first >= rows:
            break
        for row in range(first, min(first + row_task, rows)):
            embed(model, batch.tokens[row], scratch.hidden.reshape(-1), row * model.hidden_size)
    meet(counters, phase, threads)
    phase += 1
    # Each product has one call site: LLVM copies the kernels into every place that calls them.
    for unit in range(num_layers * 4 + 1):
        layer, part = unit // 4, unit % 4
        is_head = layer == num_layers
        fields = model.layers[min(layer, num_layers - 1)]
        after = NONE  # norm of the branch that is to be added first
        norm = NONE
        adds = False
        if is_head:
            matrix, norm, after, num_rows, out = (
                model.head,
                model.final_norm,
                fields[AFTER_MLP_NORM],
                samples,
                logits,
            )
        elif part == 0:
            matrix, norm, num_rows, out = fields[QKV], fields[INPUT_NORM], rows, scratch.qkv
            if layer > 0:
                after = model.layers[layer - 1, AFTER_MLP_NORM]
        elif part == 1:
            matrix, num_rows, out, adds = fields[ATTENTION_OUT], rows, scratch.hidden, True
            if fields[AFTER_ATTENTION_NORM] != NONE:
                out, adds = scratch.branch, False
        elif part == 2:
            matrix, norm, num_rows, out = fields[GATE_UP], fields[MLP_NORM], rows, scratch.gate_up
            after = fields[AFTER_ATTENTION_NORM]
        else:
            matrix, num_rows, out, adds = fields[DOWN], rows, scratch.hidden, True
            if fields[AFTER_MLP_NORM] != NONE:
                out, adds = scratch.branch, False
        if part == 1:
            while True:
                first = claim(counters, phase, row_task)
                if first >= rows:
                    break
                for row in range(first, min(first + row_task, rows)):
                    add_bias(model, scratch, layer, row)
                    store_keys_and_values(model, batch, scratch, cache, blocks, layer, row, thread)
            meet(counters, phase, threads)
            phase += 1
            while True:
                task = claim(counters, phase, 1)
                if task >= attention_tasks:
                    break
                # Later tokens see more keys: the longest tasks go first.
                tile = batch.tiles.shape[0] - 1 - task // model.num_kv_heads
                attend(model, batch, scratch, cache, blocks, layer, tile, task % model.num_kv_heads, thread)
            meet(counters, phase, threads)
            phase += 1
        while True:
            first = claim(counters, phase, row_task)
            if first >= num_rows:
                break
            for row in range(first, min(first + row_task, num_rows)):
                source = batch.sample_rows[row] if is_head else row
                if after != NONE:
                    _add_normalised(model, scratch, source, after)
                if part == 1:
                    _prepare_attention_out(model, scratch, row, matrix)
                elif part == 3:
                    _prepare_down(model, scratch, row, matrix)
                else:
                    _prepare_inputs(model, scratch, source, row, norm, matrix)
        meet(counters, phase, threads)
        phase += 1
        multiply(model, scratch, matrix, num_rows, out, adds, counters, phase)
        meet(counters, phase, threads)
        phase += 1
