from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from inference_server.checkpoints.sentence import read_sentence_config
from inference_server.errors import ModelLoadFailed
from inference_server.loading.encoder import LoadedEncoder, load_encoder
from inference_server.loading.loader import LoadedModel, load_model
from tests.engine.tiny_models import FAMILIES, save_llama_for_4_bits, save_tiny_model

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OPT = {name: size for name, size in _SIZES.items() if name != "intermediate_size"} | {"ffn_dim": 64}
OTHERS: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, num_key_value_heads=2, head_dim=16)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)),
    "gpt_oss": lambda: GptOssForCausalLM(
        GptOssConfig(**_SIZES, num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    ),
    "opt": lambda: OPTForCausalLM(OPTConfig(**_OPT, word_embed_proj_dim=64)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SIZES)),
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **_SIZES,
            num_key_value_heads=4,
            moe_intermediate_size=32,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
        )
    ),
}


def load(folder: Path, quantization: str = "none", cache_dir: Path | None = None) -> LoadedModel:
    return load_model(
        folder,
        device="cpu",
        dtype="float32",
        quantization=quantization,
        max_model_len=64,
        attention="eager",
        cache_dir=cache_dir,
    )


def drop(folder: Path, beginning: str) -> None:
    """Take the tensors whose names begin so out of the checkpoint."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(beginning)}
    assert len(kept) < len(tensors)
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        ("model.layers.1.", r"9 tensors are missing \(model\.layers\.1\..*, \.\.\.\)"),
        ("model.norm.weight", r"1 tensor is missing \(model\.norm\.weight\)"),
        ("model.embed_tokens", "missing"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, beginning: str, message: str) -> None:
    folder = save_tiny_model("llama", tmp_path)
    drop(folder, beginning)
    with pytest.raises(ModelLoadFailed, match=message):
        load(folder)


def test_an_untied_head_is_a_weight(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**_SIZES)).save_pretrained(tmp_path)
    drop(tmp_path, "lm_head")
    with pytest.raises(ModelLoadFailed, match=r"lm_head\.weight"):
        load(tmp_path)


@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-int8"])
def test_a_quantized_load_sees_it_too_and_keeps_nothing(tmp_path: Path, scheme: str) -> None:
    folder = save_llama_for_4_bits(tmp_path / "model")
    drop(folder, "model.layers.1.mlp.down_proj")
    for _ in range(2):  # the second would read what the first had kept
        with pytest.raises(ModelLoadFailed, match=r"1 tensor is missing \(model\.layers\.1\.mlp\.down_proj"):
            load(folder, scheme, tmp_path / "cache")


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_checkpoints_load(tmp_path: Path, family: str) -> None:
    assert load(save_tiny_model(family, tmp_path)).vocab_size == 128


@pytest.mark.parametrize("family", OTHERS)
def test_whole_checkpoints_of_other_families_load(tmp_path: Path, family: str) -> None:
    OTHERS[family]().save_pretrained(tmp_path)
    assert load(tmp_path).vocab_size == 128


def load_bert(folder: Path) -> LoadedEncoder:
    return load_encoder(folder, read_sentence_config(folder), device="cpu", dtype="float32")


def test_an_encoder_needs_no_pooler(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**_SIZES)).save_pretrained(tmp_path)
    assert not any("pooler" in name for name in load_file(tmp_path / "model.safetensors"))
    assert load_bert(tmp_path).vocab_size == 128


def test_an_encoder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**_SIZES)).save_pretrained(tmp_path)
    drop(tmp_path, "bert.encoder.layer.1.output")
    with pytest.raises(ModelLoadFailed, match=r"4 tensors are missing \(encoder\.layer\.1\.output"):
        load_bert(tmp_path)
