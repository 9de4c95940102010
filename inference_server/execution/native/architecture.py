"""What the kernels must know of a model's configuration: shapes, and where families differ.

One description for Llama, Mistral, Qwen2, Qwen3 and Gemma-3. Whether a configuration is within what the
kernels can do is `checkpoints/native.py`'s matter; knows no weights.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inference_server.checkpoints.native import NativeShape
from inference_server.errors import ModelLoadFailed
from inference_server.execution.admission import layer_window
from inference_server.execution.native.model import GELU_TANH, SILU
from inference_server.loading.rope import freeze_batch_dependent_rope

_ROTARY = {
    "llama": "transformers.models.llama.modeling_llama.LlamaRotaryEmbedding",
    "mistral": "transformers.models.mistral.modeling_mistral.MistralRotaryEmbedding",
    "qwen2": "transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding",
    "qwen3": "transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding",
    "gemma3_text": "transformers.models.gemma3.modeling_gemma3.Gemma3RotaryEmbedding",
}
_ACTIVATIONS = {"silu": SILU, "gelu_pytorch_tanh": GELU_TANH}


@dataclass(frozen=True, slots=True)
class Architecture:
    """`windows` and `ropes` have one entry per layer; `ropes` names the rotary table of a layer.

    `norm_offset` is added to norm weights (Gemma stores them less one). `has_branch_norms`: the outputs of
    attention and MLP are normalised too, before they are added (Gemma).
    """

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    activation: int
    norm_epsilon: float
    norm_offset: float
    attention_scale: float
    embedding_scale: float
    has_qkv_bias: bool
    has_query_key_norms: bool
    has_branch_norms: bool
    is_tied: bool
    windows: tuple[int, ...]
    ropes: tuple[str, ...]


def read_architecture(config: Any) -> Architecture:
    """From a transformers text configuration that the kernels support."""
    kind = str(config.model_type)
    is_gemma = kind == "gemma3_text"
    num_layers = int(config.num_hidden_layers)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    scale = (config.query_pre_attn_scalar if is_gemma else head_dim) ** -0.5
    return Architecture(
        model_type=kind,
        num_layers=num_layers,
        hidden_size=int(config.hidden_size),
        num_heads=int(config.num_attention_heads),
        num_kv_heads=int(config.num_key_value_heads),
        head_dim=head_dim,
        intermediate_size=int(config.intermediate_size),
        vocab_size=int(config.vocab_size),
        activation=_ACTIVATIONS[config.hidden_activation if is_gemma else config.hidden_act],
        norm_epsilon=float(config.rms_norm_eps),
        norm_offset=1.0 if is_gemma else 0.0,
        attention_scale=float(scale),
        embedding_scale=float(config.hidden_size) ** 0.5 if is_gemma else 1.0,
        has_qkv_bias=kind == "qwen2",
        has_query_key_norms=kind in ("qwen3", "gemma3_text"),
        has_branch_norms=is_gemma,
        is_tied=bool(config.tie_word_embeddings),
        windows=tuple(layer_window(index, None, config) or 0 for index in range(num_layers)),
        ropes=tuple(_rope_name(config, index) for index in range(num_layers)),
    )


def check_layout(architecture: Architecture, shape: NativeShape) -> None:
    """The layout is made of config.json's own `shape`, and the kernels, which check no bounds, go by ours.

    Raises:
        ModelLoadFailed: the two differ.
    """
    pairs = {
        "hidden_size": (shape.hidden_size, architecture.hidden_size),
        "intermediate_size": (shape.intermediate_size, architecture.intermediate_size),
        "num_hidden_layers": (shape.num_layers, architecture.num_layers),
        "num_attention_heads": (shape.num_heads, architecture.num_heads),
        "num_key_value_heads": (shape.num_kv_heads, architecture.num_kv_heads),
        "head_dim": (shape.head_dim, architecture.head_dim),
        "vocab_size": (shape.vocab_size, architecture.vocab_size),
        "tie_word_embeddings": (shape.tied, architecture.is_tied),
        "the bias of queries, keys and values": (shape.qkv_bias, architecture.has_qkv_bias),
        "the norms of heads": (shape.head_norms, architecture.has_query_key_norms),
        "the norms of branches": (shape.branch_norms, architecture.has_branch_norms),
    }
    for name, (planned, found) in pairs.items():
        if planned != found:
            raise ModelLoadFailed(
                f"config.json gives {planned} for {name}, transformers reads it as {found}; "
                "name all sizes in config.json, or use kernels: torch"
            )


def _rope_name(config: Any, layer: int) -> str:
    """Layers of one name share a table: Gemma-3 has one per layer type, the others have one."""
    return str(config.layer_types[layer]) if config.model_type == "gemma3_text" else ""


def rotary_table(config: Any, name: str, max_model_len: int, head_dim: int) -> np.ndarray:
    """float32 [max_model_len, 2, head_dim / 2]: cosines and sines per position, as transformers has them.

    Raises:
        ModelLoadFailed: transformers rotates more or less of a head.
    """
    path, _, class_name = _ROTARY[config.model_type].rpartition(".")
    rotary = getattr(importlib.import_module(path), class_name)(config)
    freeze_batch_dependent_rope(rotary, max_model_len)
    positions = torch.arange(max_model_len)[None]
    arguments = (name,) if name else ()
    cosines, sines = rotary(torch.zeros(1, dtype=torch.float32), positions, *arguments)
    half = head_dim // 2  # the second half repeats the first
    if cosines.shape[-1] != head_dim:
        raise ModelLoadFailed(f"its rotary angles are {cosines.shape[-1]} per head of {head_dim}")
    return torch.stack([cosines[0, :, :half], sines[0, :, :half]], dim=1).numpy()
