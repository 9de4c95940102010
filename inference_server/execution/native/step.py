"""A whole forward pass as one compiled function, run by every thread of a team at the same time."""

from __future__ import annotations

from typing import Any

from inference_server.checkpoints.native_weights import BITS_4, BITS_8
from inference_server.execution.native.attention import add_bias, attend, store_keys_and_values
from inference_server.execution.native.linear import compiled, multiply
from inference_server.execution.native.model import (
    AFTER_ATTENTION_NORM,
    AFTER_MLP_NORM,
    ATTENTION_OUT,
    DOWN,
    FORMAT,
    GATE_UP,
    INPUT_NORM,
    MLP_NORM,
    NONE,
    QKV,
)
from inference_server.execution.native.rows import embed, gated, normalise, quantize
from inference_server.execution.native.team import claim, meet
from inference_server.execution.native.vector import LANES, add, load, store

_QKV, _ATTENTION_OUT, _GATE_UP, _DOWN = range(4)  # the products of a layer, in order
# The phases of a layer, in order; before the first layer stands one, after the last two (for the head).
PHASES_OF_A_LAYER = (
    "prepare qkv", "qkv", "store keys and values", "attend", "prepare output", "output",
    "prepare gate and up", "gate and up", "prepare down", "down",
)  # fmt: skip
_PHASES_OUTSIDE = 4


def num_phases(num_layers: int) -> int:
    """Phases of one step."""
    return num_layers * len(PHASES_OF_A_LAYER) + _PHASES_OUTSIDE


@compiled
def _add_normalised(model: Any, scratch: Any, row: int, norm: int) -> None:
    """hidden += norm(branch), for one row."""
    size = model.hidden_size
    branch, hidden = scratch.branch.reshape(-1), scratch.hidden.reshape(-1)
    start = row * scratch.hidden.shape[1]
    normalise(branch, start, size, model.vectors, norm, model.norm_epsilon, branch, start)
    for k in range(start, start + size, LANES):
        store(hidden, k, add(load(hidden, k), load(branch, k)))


@compiled
def _prepare_normalised(model: Any, scratch: Any, source: int, row: int, norm: int) -> int:
    """inputs[row] = norm(hidden[source]); returns its size."""
    normalise(
        scratch.hidden.reshape(-1), source * scratch.hidden.shape[1], model.hidden_size, model.vectors, norm,
        model.norm_epsilon, scratch.inputs.reshape(-1), row * scratch.inputs.shape[1],
    )  # fmt: skip
    return int(model.hidden_size)


@compiled
def _prepare_attended(model: Any, scratch: Any, row: int) -> int:
    """inputs[row] = attention[row]; returns its size."""
    size = model.num_heads * model.head_dim
    source, inputs = scratch.attention.reshape(-1), scratch.inputs.reshape(-1)
    start, source_start = row * scratch.inputs.shape[1], row * scratch.attention.shape[1]
    for k in range(0, size, LANES):
        store(inputs, start + k, load(source, source_start + k))
    return int(size)


@compiled
def _prepare_gated(model: Any, scratch: Any, row: int) -> int:
    """inputs[row] = activation(gate) * up; returns its size."""
    gated(
        scratch.gate_up.reshape(-1), row * scratch.gate_up.shape[1], model.intermediate_size,
        model.activation, scratch.inputs.reshape(-1), row * scratch.inputs.shape[1],
    )  # fmt: skip
    return int(model.intermediate_size)


@compiled
def _prepare(model: Any, scratch: Any, source: int, row: int, part: int, plan: Any) -> None:
    """One row of the next product's inputs, in 16 bits if its matrix meets such."""
    matrix, norm, norm_before = plan
    if norm_before != NONE:
        _add_normalised(model, scratch, source, norm_before)
    if part == _ATTENTION_OUT:
        size = _prepare_attended(model, scratch, row)
    elif part == _DOWN:
        size = _prepare_gated(model, scratch, row)
    else:
        size = _prepare_normalised(model, scratch, source, row, norm)
    if model.matrices[matrix, FORMAT] >= BITS_8:
        quantize(scratch, row, size, model.matrices[matrix, FORMAT] == BITS_4)


@compiled
def _plan(model: Any, layer: int, part: int) -> tuple[int, int, int]:
    """(matrix, norm of its inputs, norm of a branch that is to be added before) of one product."""
    num_layers = model.layers.shape[0]
    if layer == num_layers:
        return model.head, model.final_norm, model.layers[num_layers - 1, AFTER_MLP_NORM]
    fields = model.layers[layer]
    if part == _QKV:
        before = model.layers[layer - 1, AFTER_MLP_NORM] if layer > 0 else NONE
        return fields[QKV], fields[INPUT_NORM], before
    if part == _ATTENTION_OUT:
        return fields[ATTENTION_OUT], NONE, NONE
    if part == _GATE_UP:
        return fields[GATE_UP], fields[MLP_NORM], fields[AFTER_ATTENTION_NORM]
    return fields[DOWN], NONE, NONE


@compiled
def _target(model: Any, scratch: Any, logits: Any, layer: int, part: int) -> tuple[Any, bool]:
    """(where a product goes, whether it is added to what is there)."""
    if layer == model.layers.shape[0]:
        return logits, False
    if part == _QKV:
        return scratch.qkv, False
    if part == _GATE_UP:
        return scratch.gate_up, False
    norm = model.layers[layer, AFTER_ATTENTION_NORM if part == _ATTENTION_OUT else AFTER_MLP_NORM]
    if norm != NONE:
        return scratch.branch, False
    return scratch.hidden, True


@compiled
def _attend_all(
    model: Any, batch: Any, scratch: Any, cache: Any, blocks: int, layer: int, counters: Any, phase: int,
    thread: int,
) -> None:  # fmt: skip
    """This thread's share of a layer's attention tasks. Each brings the first blocks of the next one closer.

    Later tokens see more keys, so the last tiles go first.
    """
    heads = model.num_kv_heads
    last_tile = batch.tiles.shape[0] - 1
    num_tasks = (last_tile + 1) * heads
    task = claim(counters, phase, 1)
    while task < num_tasks:
        following = claim(counters, phase, 1)
        ahead = min(following, num_tasks - 1)
        attend(
            model, batch, scratch, cache, blocks, layer, last_tile - task // heads, task % heads,
            last_tile - ahead // heads, ahead % heads, thread,
        )  # fmt: skip
        task = following


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
    rows_per_task = max(1, rows // (4 * threads))
    num_layers = model.layers.shape[0]
    phase = 0
    first = claim(counters, phase, rows_per_task)
    while first < rows:
        for row in range(first, min(first + rows_per_task, rows)):
            embed(model, batch.tokens[row], scratch.hidden.reshape(-1), row * scratch.hidden.shape[1])
        first = claim(counters, phase, rows_per_task)
    meet(counters, phase, threads)
    phase += 1
    # Each kernel has one call site: LLVM copies it into every place that calls it.
    for product in range(num_layers * 4 + 1):
        layer, part = product // 4, product % 4
        if part == _ATTENTION_OUT:
            first = claim(counters, phase, rows_per_task)
            while first < rows:
                for row in range(first, min(first + rows_per_task, rows)):
                    add_bias(model, scratch, layer, row)
                    store_keys_and_values(model, batch, scratch, cache, blocks, layer, row, thread)
                first = claim(counters, phase, rows_per_task)
            meet(counters, phase, threads)
            _attend_all(model, batch, scratch, cache, blocks, layer, counters, phase + 1, thread)
            meet(counters, phase + 1, threads)
            phase += 2
        plan = _plan(model, layer, part)
        num_rows = batch.sample_rows.size if layer == num_layers else rows
        first = claim(counters, phase, rows_per_task)
        while first < num_rows:
            for row in range(first, min(first + rows_per_task, num_rows)):
                source = batch.sample_rows[row] if layer == num_layers else row
                _prepare(model, scratch, source, row, part, plan)
            first = claim(counters, phase, rows_per_task)
        meet(counters, phase, threads)
        out, adds = _target(model, scratch, logits, layer, part)
        multiply(model, scratch, plan[0], num_rows, out, adds, counters, phase + 1)
        meet(counters, phase + 1, threads)
        phase += 2
