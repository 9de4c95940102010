"""Tiny randomly initialised models of the families that the golden rule is proven on.

Weights are spread widely, so that logits are peaked and greedy choices do not hang on rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 128
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}


def _llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**_COMMON, tie_word_embeddings=True))


def _qwen3() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**_COMMON, head_dim=24))


def _mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**_COMMON, sliding_window=8))


def _gemma3() -> Any:
    layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**_COMMON, head_dim=16, sliding_window=6, layer_types=layer_types)
    )


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_embd=64,
            n_layer=3,
            n_head=4,
            n_positions=512,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.15,
        )
    )


_NATIVE = _COMMON | {"hidden_size": 96, "num_attention_heads": 6, "initializer_range": 0.1}


def _native_llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**_NATIVE, head_dim=32, tie_word_embeddings=True))


def _native_mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**_NATIVE, head_dim=32, sliding_window=20))


def _native_qwen2() -> Any:
    model = Qwen2ForCausalLM(Qwen2Config(**_NATIVE | {"hidden_size": 192}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def _native_qwen3() -> Any:
    model = Qwen3ForCausalLM(Qwen3Config(**_NATIVE, head_dim=64, tie_word_embeddings=True))
    return _with_uneven_norms(model)


def _native_gemma3() -> Any:
    layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            **_NATIVE | {"num_key_value_heads": 1}, head_dim=32, sliding_window=17, layer_types=layer_types
        )
    )
    return _with_uneven_norms(model)


def _with_uneven_norms(model: Any) -> Any:
    """Norm weights that differ, so that a misplaced one shows."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


NATIVE_FAMILIES = {
    "llama": _native_llama,
    "mistral": _native_mistral,
    "qwen2": _native_qwen2,
    "qwen3": _native_qwen3,
    "gemma3": _native_gemma3,
}
FAMILIES = {"llama": _llama, "qwen3": _qwen3, "mistral": _mistral, "gemma3": _gemma3, "gpt2": _gpt2}


def save_tiny_model(family: str, folder: Path, *, native: bool = False) -> Path:
    """Build one model with a fixed seed and save it as a checkpoint folder; `native`: for our CPU kernels."""
    torch.manual_seed(1234)
    model = (NATIVE_FAMILIES if native else FAMILIES)[family]().float().eval()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    return folder


def save_llama_for_4_bits(folder: Path) -> Path:
    """A tiny Llama whose sizes suit 4-bit blocks of 64."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).float().eval().save_pretrained(folder)
    return folder
