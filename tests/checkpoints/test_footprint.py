from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference_server.checkpoints.footprint import (
    kv_bytes_per_token,
    stored_weight_bytes,
    weight_bytes,
)
from inference_server.errors import ConfigError, FetchFailed
from tests.checkpoints.files import LLAMA, write_folder, write_safetensors

EMBEDDING, LINEAR, NORM = 100 * 64, 64 * 64, 64


def test_unquantized_weights_take_elements_times_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    num_elements = 2 * EMBEDDING + LINEAR + NORM
    assert weight_bytes(folder, quantization="none", dtype="auto") == 2 * num_elements
    assert weight_bytes(folder, quantization="none", dtype="float32") == 4 * num_elements


def test_a_stored_head_counts_even_if_it_is_tied_as_the_loader_keeps_one_that_differs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, LLAMA | {"tie_word_embeddings": True})
    expected = 2 * (2 * EMBEDDING + LINEAR + NORM)
    assert weight_bytes(folder, quantization="none", dtype="bfloat16") == expected


def test_only_linear_weights_in_layers_are_quantized(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    rest = 2 * (2 * EMBEDDING + NORM)
    nf4 = weight_bytes(folder, quantization="bnb-nf4", dtype="bfloat16")
    assert nf4 == rest + LINEAR // 2 + LINEAR // 64 + 4 * 1 + 4 * 273
    assert weight_bytes(folder, quantization="bnb-int8", dtype="bfloat16") == rest + LINEAR + 4 * 64


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.3.up_proj.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.block_sparse_moe.router.weight",
        "model.layers.0.q_norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_experts_routers_embeddings_and_heads_stay_as_they_are(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {name: ("BF16", (64, 64))})
    assert weight_bytes(tmp_path, quantization="bnb-nf4", dtype="auto") == 2 * 64 * 64


def test_gpt2_stores_its_linear_weights_transposed(tmp_path: Path) -> None:
    write_folder(tmp_path)
    tensors = {"h.0.attn.c_attn.weight": ("F32", (64, 192))}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert weight_bytes(tmp_path, quantization="bnb-int8", dtype="bfloat16") == 64 * 192 + 4 * 192


def test_small_floats_that_no_scheme_explains_are_widened_like_any_number(tmp_path: Path) -> None:
    write_folder(tmp_path)
    name = "model.layers.0.q.weight"
    write_safetensors(tmp_path / "model.safetensors", {name: ("F8_E4M3", (64, 64))})
    assert weight_bytes(tmp_path, quantization="none", dtype="float32") == 4 * LINEAR
    assert weight_bytes(tmp_path, quantization="none", dtype="bfloat16") == 2 * LINEAR


FP8 = {"quant_method": "fp8"}
FP8_TENSORS = {
    "model.layers.0.q.weight": ("F8_E4M3", (64, 64)),
    "model.layers.0.q.weight_scale_inv": ("F32", (1, 1)),
    "model.norm.weight": ("BF16", (64,)),
}


def test_codes_that_are_kept_take_their_bytes_on_disk_and_other_numbers_at_least_the_dtype(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path, LLAMA | {"quantization_config": FP8})
    write_safetensors(tmp_path / "model.safetensors", FP8_TENSORS)
    assert stored_weight_bytes(tmp_path, dtype="bfloat16", unpacks=False) == 64 * 64 + 4 + 2 * 64
    assert stored_weight_bytes(tmp_path, dtype="float32", unpacks=False) == 64 * 64 + 4 + 4 * 64


def test_codes_that_are_unpacked_take_the_dtype_and_their_scales_are_gone(tmp_path: Path) -> None:
    write_folder(tmp_path, LLAMA | {"quantization_config": FP8})
    write_safetensors(tmp_path / "model.safetensors", FP8_TENSORS)
    assert stored_weight_bytes(tmp_path, dtype="float32", unpacks=True) == 4 * (64 * 64 + 64)


def test_without_a_named_dtype_auto_is_what_most_weights_have(tmp_path: Path) -> None:
    write_folder(tmp_path, {key: value for key, value in LLAMA.items() if key != "dtype"})
    write_safetensors(tmp_path / "model.safetensors", {"a": ("F16", (100,)), "b": ("F32", (10,))})
    assert weight_bytes(tmp_path, quantization="none", dtype="auto") == 2 * 110


def test_a_scripted_model_takes_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"model_type": "scripted"})
    (folder / "model.safetensors").unlink()
    assert weight_bytes(folder, quantization="none", dtype="auto") == 0
    assert kv_bytes_per_token({"model_type": "scripted"}, "auto") == 0


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    with pytest.raises(ConfigError, match="gguf"):
        weight_bytes(folder, quantization="gguf", dtype="auto")
    with pytest.raises(ConfigError, match="int3"):
        weight_bytes(folder, quantization="none", dtype="int3")


KV_CASES: list[tuple[dict[str, Any], int]] = [
    ({}, 2 * 2 * 2 * 16 * 2),  # layers, K and V, kv heads, head dim, bytes
    ({"head_dim": 32}, 2 * 2 * 2 * 32 * 2),
    ({"num_key_value_heads": None}, 2 * 2 * 4 * 16 * 2),
    ({"num_key_value_heads": [1, 3]}, 2 * (1 + 3) * 16 * 2),
    ({"global_head_dim": 64}, 2 * 2 * 2 * 64 * 2),
    (
        {"kv_lora_rank": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12},
        2 * 4 * (16 + 8 + 12) * 2,
    ),
]


@pytest.mark.parametrize(("changes", "expected"), KV_CASES)
def test_the_kv_cache_of_one_token(changes: dict[str, Any], expected: int) -> None:
    assert kv_bytes_per_token(LLAMA | changes, "auto") == expected
    assert kv_bytes_per_token({"text_config": LLAMA | changes}, "float32") == 2 * expected


def test_the_kv_cache_of_gpt2_and_of_one_shared_head() -> None:
    config = {"n_layer": 3, "n_head": 4, "n_embd": 64}
    assert kv_bytes_per_token(config, "float16") == 3 * 2 * 4 * 16 * 2
    assert kv_bytes_per_token(config | {"multi_query": True}, "float16") == 3 * 2 * 1 * 16 * 2


def test_a_config_without_attention_is_refused() -> None:
    with pytest.raises(FetchFailed, match="num_attention_heads"):
        kv_bytes_per_token({"num_hidden_layers": 2}, "float32")
