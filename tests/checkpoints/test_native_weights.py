"""The description of native weights, against checkpoints that transformers wrote and against the packing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.headers import TensorInfo, read_checkpoint
from inference_server.checkpoints.native import native_support
from inference_server.checkpoints.native_weights import (
    ALIGNMENT,
    BFLOAT16,
    BITS_4,
    BITS_8,
    FLOAT32,
    aligned,
    native_vectors,
    native_weight_bytes,
    native_weights,
    packed_bytes,
    unexpected_weights,
)
from inference_server.execution.native.packing import pack_blocks, pack_dense
from inference_server.loading.blocks import quantize_4_bits, quantize_8_bits

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}
_CONFIGS = {
    "llama": LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**_SIZES, tie_word_embeddings=False),
    "mistral": MistralConfig(**_SIZES),
    "qwen2": Qwen2Config(**(_SIZES | {"hidden_size": 128})),
    "qwen3": Qwen3Config(**_SIZES),
    "gemma3": Gemma3TextConfig(**_SIZES),
}


@pytest.fixture(scope="module", params=sorted(_CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_config(_CONFIGS[request.param]).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_every_tensor_of_a_supported_checkpoint_has_its_place(folder: Path) -> None:
    config, tensors = read_config(folder), read_checkpoint(folder)
    assert native_support(config) is None
    assert unexpected_weights(config, tensors) is None
    weights = native_weights(config, quantization="none", dtype="bfloat16", block_bits={})
    placed = [part for matrix in weights.matrices() for part in matrix.parts] + [*native_vectors(config)]
    assert sorted(placed) == sorted(tensors)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_packing_takes_the_bytes_that_are_predicted(folder: Path, quantization: str, dtype: str) -> None:
    config, tensors = read_config(folder), load_file(folder / "model.safetensors")
    weights = native_weights(config, quantization=quantization, dtype=dtype, block_bits={})
    total = 0
    for matrix in weights.matrices():
        stacked = torch.cat([tensors[part] for part in matrix.parts])
        assert stacked.shape == (matrix.rows, matrix.columns)
        assert _pack(stacked, matrix.format).nbytes == matrix.num_bytes
        total += aligned(matrix.num_bytes)
    total += 4 * sum(tensors[name].numel() for name in native_vectors(config))
    ropes = 2 if config["model_type"] == "gemma3_text" and len(set(config["layer_types"])) == 2 else 1
    total += ropes * 128 * 32 * 4
    predicted = native_weight_bytes(
        config, quantization=quantization, dtype=dtype, block_bits={}, max_model_len=128
    )
    assert predicted == total


def _pack(weight: torch.Tensor, format_: int) -> np.ndarray[Any, Any]:
    if format_ in (FLOAT32, BFLOAT16):
        return pack_dense(weight.to(torch.float32 if format_ == FLOAT32 else torch.bfloat16))
    quantize = quantize_4_bits if format_ == BITS_4 else quantize_8_bits
    return pack_blocks(quantize(weight.float().numpy()))


def test_four_bits_are_for_layers_and_eight_for_embedding_and_head() -> None:
    config = _CONFIGS["llama-untied"].to_dict()
    weights = native_weights(config, quantization="int4", dtype="bfloat16", block_bits={})
    assert {matrix.format for layer in weights.layers for matrix in _matrices(layer)} == {BITS_4}
    assert (weights.embedding.format, weights.head.format) == (BITS_8, BITS_8)


def test_a_tied_head_is_counted_once() -> None:
    tied, untied = (
        native_weights(_CONFIGS[name].to_dict(), quantization="int8", dtype="float32", block_bits={})
        for name in ("llama", "llama-untied")
    )
    assert tied.head is tied.embedding
    assert untied.arena_bytes - tied.arena_bytes == aligned(untied.head.num_bytes)
    assert tied.arena_bytes % ALIGNMENT == 0


def test_blocks_of_a_gguf_are_kept_where_all_parts_of_a_matrix_have_the_same() -> None:
    prefix = "model.layers.0."
    bits = {f"{prefix}self_attn.{part}_proj.weight": 4 for part in "qkvo"}
    bits |= {f"{prefix}mlp.gate_proj.weight": 4, f"{prefix}mlp.up_proj.weight": 8}
    bits |= {"model.embed_tokens.weight": 8}
    config = _CONFIGS["llama"].to_dict()
    weights = native_weights(config, quantization="gguf", dtype="bfloat16", block_bits=bits)
    first, second = weights.layers
    assert [matrix.format for matrix in _matrices(first)] == [BITS_4, BITS_4, BFLOAT16, BFLOAT16]
    assert {matrix.format for matrix in _matrices(second)} == {BFLOAT16}
    assert weights.embedding.format == BITS_8


def test_an_unfilled_panel_counts_as_a_whole_one() -> None:
    assert packed_bytes(BITS_8, 17, 32) == packed_bytes(BITS_8, 32, 32) == 2 * 32 * 17
    assert packed_bytes(BITS_4, 16, 64) == 64 * 10


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model.norm.weight": None}, "the checkpoint has no model.norm.weight"),
        ({"model.norm.weight": TensorInfo("F32", (65,), 260)}, r"the shape \[65\] and not \[64\]"),
        ({"model.norm.weight": TensorInfo("I8", (64,), 64)}, "stored as I8"),
        ({"model.layers.0.self_attn.q_proj.bias": TensorInfo("F32", (128,), 512)}, "has no place"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_config_promises_is_named(
    change: dict[str, TensorInfo | None], reason: str
) -> None:
    config = _CONFIGS["llama"].to_dict()
    whole: dict[str, TensorInfo | None] = {
        name: TensorInfo("F32", (length,), 4 * length) for name, length in native_vectors(config).items()
    }
    sizes = {"q_proj": (128, 64), "k_proj": (64, 64), "v_proj": (64, 64), "o_proj": (64, 128)}
    sizes |= {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}
    for matrix in native_weights(config, quantization="none", dtype="float32", block_bits={}).matrices():
        for part in matrix.parts:
            shape = sizes.get(part.split(".")[-2], (100, 64))
            whole[part] = TensorInfo("F32", shape, 4 * shape[0] * shape[1])
    whole |= {"model.layers.0.self_attn.rotary_emb.inv_freq": TensorInfo("F32", (16,), 64)}
    assert unexpected_weights(config, _without_none(whole)) is None
    assert re.search(reason, str(unexpected_weights(config, _without_none(whole | change))))


def test_more_layers_than_tensors_are_named_before_any_is_built() -> None:
    config = _CONFIGS["llama"].to_dict() | {"num_hidden_layers": 10**12}
    reason = unexpected_weights(config, {"model.norm.weight": TensorInfo("F32", (64,), 256)})
    assert reason == f"config.json names {10**12} layers, the checkpoint has 1 tensors"


def _without_none(tensors: dict[str, TensorInfo | None]) -> dict[str, TensorInfo]:
    return {name: info for name, info in tensors.items() if info is not None}


def _matrices(layer: Any) -> list[Any]:
    return [layer.qkv, layer.attention_out, layer.gate_up, layer.down]
