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


FAMILIES = {"llama": _llama, "qwen3": _qwen3, "mistral": _mistral, "gemma3": _gemma3, "gpt2": _gpt2}


def save_tiny_model(family: str, folder: Path) -> Path:
    """Build one model with a fixed seed and save it as a checkpoint folder."""
    torch.manual_seed(1234)
    model = FAMILIES[family]().float().eval()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    return folder
