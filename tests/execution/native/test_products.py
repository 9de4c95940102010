"""Each kind of product and row operation of the CPU kernels, against float64."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
import pytest
import torch
from numba import njit

from inference_server.checkpoints.native_weights import BFLOAT16, BITS_4, BITS_8, FLOAT32
from inference_server.execution.native import linear, rows
from inference_server.execution.native.model import NUM_LAYER_FIELDS, Model
from inference_server.execution.native.packing import pack_blocks, pack_dense
from inference_server.execution.native.runner import new_scratch
from inference_server.execution.native.team import new_counters
from inference_server.loading.blocks import quantize_4_bits, quantize_8_bits

NUM_OUTPUTS, NUM_INPUTS = 72, 96  # the last panel is half full
FORMATS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "8 bits": BITS_8, "4 bits": BITS_4}


@pytest.fixture(scope="module")
def compiled_multiply() -> Any:
    llvmlite.binding.initialize_native_asmparser()

    @njit(nogil=True, boundscheck=False, error_model="numpy")
    def run(model: Any, scratch: Any, num_rows: int, out: Any, adds: bool, counters: Any) -> None:
        for row in range(num_rows):
            rows.quantize(scratch, row, 96, True)
        linear.multiply(model, scratch, 0, num_rows, out, adds, counters, 0)

    return run


def packed(format_: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(panels, the weights that they stand for in float64)."""
    if format_ == FLOAT32:
        return pack_dense(torch.from_numpy(weight)), weight.astype(np.float64)
    if format_ == BFLOAT16:
        halves = torch.from_numpy(weight).bfloat16()
        return pack_dense(halves), halves.double().numpy()
    blocks = quantize_8_bits(weight) if format_ == BITS_8 else quantize_4_bits(weight)
    return pack_blocks(blocks), blocks.dequantize().astype(np.float64)


def one_matrix(format_: int, panels: np.ndarray) -> Model:
    return Model(
        arena=panels,
        matrices=np.array([[format_, 0, NUM_OUTPUTS, NUM_INPUTS]], dtype=np.int64),
        vectors=np.ones(NUM_INPUTS, dtype=np.float32),
        rope=np.zeros(1, dtype=np.float32),
        layers=np.zeros((1, NUM_LAYER_FIELDS), dtype=np.int64),
        embedding=0,
        head=0,
        final_norm=0,
        hidden_size=NUM_INPUTS,
        num_heads=3,
        num_kv_heads=1,
        head_dim=32,
        intermediate_size=NUM_INPUTS,
        activation=0,
        norm_epsilon=1e-5,
        attention_scale=1.0,
        embedding_scale=1.0,
    )


@pytest.mark.parametrize("name", FORMATS)
def test_products_equal_float64_for_every_number_of_rows(compiled_multiply: Any, name: str) -> None:
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(NUM_OUTPUTS, NUM_INPUTS)).astype(np.float32)
    panels, exact = packed(FORMATS[name], weight)
    model = one_matrix(FORMATS[name], panels)
    scratch = new_scratch(model, 140, 1)
    for num_rows in (*range(1, 28), 120, 121, 140):
        inputs = rng.normal(size=(num_rows, NUM_INPUTS)).astype(np.float32)
        inputs[0, 3] = 40.0  # an outlier, as activations have them
        scratch.inputs[:num_rows, :NUM_INPUTS] = inputs
        out = rng.normal(size=(num_rows, 80)).astype(np.float32)
        before = out.copy()
        expected = inputs.astype(np.float64) @ exact.T
        for adds in (False, True):
            out[:] = before
            compiled_multiply(model, scratch, num_rows, out, adds, new_counters(1))
            wanted = expected + before[:, :NUM_OUTPUTS] if adds else expected
            np.testing.assert_allclose(out[:, :NUM_OUTPUTS], wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_an_embedding_is_the_row_that_its_token_names(name: str) -> None:
    llvmlite.binding.initialize_native_asmparser()
    weight = np.random.default_rng(6).normal(size=(NUM_OUTPUTS, NUM_INPUTS)).astype(np.float32)
    panels, exact = packed(FORMATS[name], weight)
    model = one_matrix(FORMATS[name], panels)._replace(embedding_scale=3.0)
    out = np.zeros(NUM_INPUTS, dtype=np.float32)
    for token in (0, 15, 16, 71):
        rows.embed(model, token, out, 0)
        np.testing.assert_allclose(out, 3.0 * exact[token], rtol=1e-6)


def test_a_norm_equals_float64() -> None:
    values = np.random.default_rng(7).normal(size=NUM_INPUTS).astype(np.float32)
    weights = np.linspace(0.5, 2.0, NUM_INPUTS, dtype=np.float32)
    out = np.zeros(NUM_INPUTS, dtype=np.float32)
    rows.normalise(values, 0, NUM_INPUTS, weights, 0, 1e-5, out, 0)
    exact = values.astype(np.float64)
    exact = exact / np.sqrt(np.mean(exact**2) + 1e-5) * weights
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("activation", "approximate"), [(0, None), (1, "tanh")])
def test_gated_activations_equal_float64(activation: int, approximate: str | None) -> None:
    gate_up = np.concatenate([np.linspace(-90, 90, 64), np.linspace(1, 2, 64)]).astype(np.float32)
    out = np.zeros(64, dtype=np.float32)
    rows.gated(gate_up, 0, 64, activation, out, 0)
    gate = torch.from_numpy(gate_up[:64]).double()
    if approximate is None:
        exact = torch.nn.functional.silu(gate)
    else:
        exact = torch.nn.functional.gelu(gate, approximate=approximate)
    np.testing.assert_allclose(out, (exact * torch.from_numpy(gate_up[64:])).numpy(), rtol=2e-5, atol=1e-6)
