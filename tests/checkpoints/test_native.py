"""Which configs the native kernels take, and why not the others."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from inference_server.checkpoints.native import native_cpu, native_shape, native_support

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 100,
    "hidden_act": "silu",
}
GEMMA = LLAMA | {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(tie_word_embeddings=True),
        MistralConfig(sliding_window=64),
        Qwen2Config(),
        Qwen3Config(),
        Gemma3TextConfig(),
    ],
    ids=lambda config: config.model_type,
)
def test_what_transformers_writes_for_a_supported_family_is_understood(config: Any) -> None:
    written = config.to_dict()
    assert native_support(written) is None
    shape = native_shape(written)
    assert shape.head_dim == (written.get("head_dim") or config.hidden_size // config.num_attention_heads)
    assert shape.tied is config.tie_word_embeddings
    assert shape.query_size == config.num_attention_heads * shape.head_dim


def test_families_differ_in_their_vectors_and_rotary_tables() -> None:
    llama, gemma = native_shape(LLAMA), native_shape(GEMMA)
    assert (llama.qkv_bias, llama.head_norms, llama.branch_norms, llama.num_ropes) == (False, False, False, 1)
    assert (gemma.head_norms, gemma.branch_norms, gemma.num_ropes, gemma.tied) == (True, True, 2, True)
    assert native_shape(GEMMA | {"layer_types": ["full_attention"] * 2}).num_ropes == 1
    assert native_shape(LLAMA | {"model_type": "qwen2"}).qkv_bias


def test_a_config_without_key_value_heads_has_as_many_as_query_heads() -> None:
    config = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
    assert native_support(config | {"hidden_size": 128}) is None
    assert native_shape(config | {"hidden_size": 128}).kv_size == 128


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2'"),
        ({"model_type": None}, "model type None"),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantized"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "code of its own"),
        ({"num_hidden_layers": "two"}, "no num_hidden_layers"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"head_dim": 48}, "heads of 48, which is no multiple of 32"),
        ({"head_dim": 16}, "heads of 16"),
        ({"hidden_size": 72}, "hidden_size 72"),
        ({"intermediate_size": 100}, "intermediate_size 100"),
        ({"num_key_value_heads": 3}, "4 heads that do not share 3"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"attention_bias": True}, "bias on attention's output"),
        ({"mlp_bias": True}, "biases in the MLP"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
        ({"layer_types": ["chunked_attention"]}, "layers of type chunked_attention"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial rotary"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "type dynamic"),
        ({"rope_scaling": {"type": "longrope"}}, "type longrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "type dynamic"),
    ],
)
def test_what_the_kernels_do_not_compute_is_named(change: dict[str, Any], reason: str) -> None:
    assert native_support(LLAMA) is None
    assert reason in str(native_support(LLAMA | change))


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_rotary_embeddings_that_do_not_look_at_the_batch_are_fine(kind: str) -> None:
    assert native_support(LLAMA | {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0}}) is None
    assert native_support(LLAMA | {"rope_scaling": {"rope_type": kind}}) is None
    nested = {"full_attention": {"rope_type": kind}, "sliding_attention": {"rope_type": "default"}}
    assert native_support(GEMMA | {"rope_parameters": nested}) is None


def test_a_family_whose_head_size_does_not_follow_from_others_must_name_it() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "head_dim"} | {"model_type": "qwen3"}
    assert native_support(config) == "no head_dim in config.json"


def test_only_a_llama_may_leave_out_its_number_of_key_value_heads() -> None:
    """The other families' configurations mean a fixed number by that, and not as many as there are heads."""
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert native_support(config) is None
    for model_type in ("mistral", "qwen2", "qwen3"):
        assert native_support(config | {"model_type": model_type}) == "no num_key_value_heads in config.json"
    assert native_support(config | {"model_type": "mistral", "num_key_value_heads": None}) is None


def test_a_cpu_needs_avx2_with_fused_multiplication_and_half_floats() -> None:
    assert native_cpu(frozenset({"avx2", "fma", "f16c", "sse2"})) is None
    assert native_cpu(frozenset({"avx2"})) == "this CPU lacks f16c, fma"
