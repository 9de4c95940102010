"""Models for the GPU suite, made in memory: speed does not depend on what weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from inference_server.loading.loader import LoadedModel, storage_bytes

SHAPES: dict[str, dict[str, Any]] = {
    # Llama-3.1-8B's shape.
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def make_config(shape: str) -> LlamaConfig:
    """An untied Llama of this shape."""
    return LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        rope_theta=500000.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def make_model(shape: str, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
    """A model with random weights, made where it will run."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            make_config(shape), dtype=dtype, attn_implementation=attention
        )
    return model.to(device).eval()


def as_loaded(model: Any, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """What the loader would have made of it."""
    return LoadedModel(
        model=model,
        config=model.config,
        device=device,
        dtype=dtype,
        weights_bytes=storage_bytes(model),
        eos_token_ids=(2,),
        vocab_size=int(model.config.vocab_size),
    )


def quantize_nf4(model: nn.Module, dtype: torch.dtype) -> int:
    """Make every linear layer but the last bitsandbytes' nf4, as the loader does; returns how many."""
    import bitsandbytes as bnb

    names = [
        name for name, module in model.named_modules() if type(module) is nn.Linear and name != "lm_head"
    ]
    for name in names:
        old = model.get_submodule(name)
        new = bnb.nn.Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        weight = old.weight.data
        new.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new
        ).to(weight.device)
        if old.bias is not None:
            new.bias = old.bias
        model.set_submodule(name, new)
    return len(names)


def bytes_read_per_token(model: Any) -> int:
    """Weight bytes that one decode step has to read: all but the embedding, of which it reads one row."""
    embedding = model.get_input_embeddings().weight
    return storage_bytes(model) - embedding.numel() * embedding.element_size()


def multiplications_per_token(model: Any) -> int:
    """Weights that each token is multiplied with: all linear layers."""
    return sum(
        module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear)
    )
