"""How many bytes a model will take before it is loaded: weights after quantization, KV cache per token.

Reads headers and config only. The formulas were checked byte for byte against loaded models; where a family
leaves a doubt, the larger figure is taken. Knows nothing of budgets or devices.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_server.checkpoints.facts import (
    LAYER_KEYS,
    ModelFacts,
    config_dtype,
    first_int,
    is_count,
    model_facts,
    read_config,
    required_int,
    text_config,
)
from inference_server.checkpoints.headers import TensorInfo, read_checkpoint
from inference_server.checkpoints.stored import unpacked_weights
from inference_server.errors import ConfigError

__all__ = ["ModelFacts", "kv_bytes_per_token", "model_facts", "stored_weight_bytes", "weight_bytes"]

_ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_FLOATS = ("F", "BF")  # how the names of all of them begin, with 8 bits and less, too: the loader widens them
_NF4_BLOCK = 64  # weights per absmax value
_NF4_GROUP = 256  # scales per scale of scales
_NF4_BYTES_PER_LINEAR = 4 * (16 + 256 + 1)  # two quantization maps, and an offset
_IN_A_LAYER = re.compile(r"(^|\.)(layers|h|blocks|block|layer)\.\d+\.")
# Not nn.Linear in transformers 5: fused experts, routers, embeddings inside layers, norms.
_NEVER_LINEAR = re.compile(r"\.(experts|embed\w*|\w*norm\w*|router|gate)\.")
_CONV1D = re.compile(r"\.c_(attn|fc|proj)\.")  # gpt2 stores these as [in, out]


def weight_bytes(folder: Path, *, quantization: str, dtype: str) -> int:
    """Bytes of a plain checkpoint's weights once loaded as `dtype` ("auto": as stored) with `quantization`.

    An output head beside the embedding it is tied to counts: the loader reads both, and keeps both if they
    differ. Scripted models take nothing.

    Raises:
        FetchFailed: the files are damaged.
        ConfigError: the quantization or dtype is unknown.
    """
    if quantization not in ("none", "bnb-nf4", "bnb-int8"):
        raise ConfigError(f"quantization {quantization!r} is unknown", param="quantization")
    config = read_config(folder)
    tensors = read_checkpoint(folder)
    itemsize = _itemsize(_load_dtype(dtype, config, tensors))
    return sum(_tensor_bytes(name, tensor, quantization, itemsize) for name, tensor in tensors.items())


def stored_weight_bytes(folder: Path, *, dtype: str, unpacks: bool) -> int:
    """Bytes of the weights of a checkpoint that comes quantized, once loaded for computing in `dtype`.

    Codes take what they take on disk, and other numbers at least `dtype`; if it `unpacks`, all are plain.

    Raises:
        FetchFailed: the files are damaged.
        ConfigError: the dtype is unknown.
    """
    config = read_config(folder)
    tensors = read_checkpoint(folder)
    itemsize = _itemsize(_load_dtype(dtype, config, tensors))
    if unpacks:
        return unpacked_weights(tensors, config) * itemsize
    return sum(
        max(tensor.nbytes, tensor.num_elements * itemsize if tensor.dtype in _FLOAT_NAMES else 0)
        for tensor in tensors.values()
    )


def _tensor_bytes(name: str, tensor: TensorInfo, quantization: str, itemsize: int) -> int:
    if not tensor.dtype.startswith(_FLOATS):
        return tensor.nbytes
    if quantization == "none" or not _is_convertible(name, tensor):
        return tensor.num_elements * itemsize
    if quantization == "bnb-int8":  # one byte per weight and a float32 scale per output row
        return tensor.num_elements + 4 * (max(tensor.shape) if _CONV1D.search(name) else tensor.shape[0])
    num_blocks = -(-tensor.num_elements // _NF4_BLOCK)
    num_groups = -(-num_blocks // _NF4_GROUP)  # the blocks' scales are quantized, too: one byte each
    return -(-tensor.num_elements // 2) + num_blocks + 4 * num_groups + _NF4_BYTES_PER_LINEAR


def _is_convertible(name: str, tensor: TensorInfo) -> bool:
    """True for the weight of a linear layer inside a decoder layer; heads and embeddings stay as they are."""
    in_layer = _IN_A_LAYER.search(name) is not None and _NEVER_LINEAR.search(name) is None
    return in_layer and len(tensor.shape) == 2 and name.endswith(".weight")


def _load_dtype(dtype: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """What "auto" means to the loader: the config's dtype, else the one most weights have."""
    if dtype != "auto":
        return dtype
    named = config_dtype(config)
    if named in _ITEMSIZE:
        return named
    counts = Counter[str]()
    for tensor in tensors.values():
        if tensor.dtype in _FLOAT_NAMES:
            counts[_FLOAT_NAMES[tensor.dtype]] += tensor.num_elements
    return counts.most_common(1)[0][0] if counts else "float32"


def _itemsize(dtype: str) -> int:
    if dtype not in _ITEMSIZE:
        raise ConfigError(f"dtype {dtype!r} is unknown", param="dtype")
    return _ITEMSIZE[dtype]


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int:
    """Bytes of keys and values that one token position takes in all layers; 0 for a scripted model.

    `config` is config.json; `dtype` the one the cache will have ("auto": the checkpoint's).

    Raises:
        FetchFailed: the config does not describe an attention model.
    """
    if config.get("model_type") == "scripted":
        return 0
    text = text_config(config)
    itemsize = _itemsize(config_dtype(config) or "float32" if dtype == "auto" else dtype)
    num_layers = required_int(text, LAYER_KEYS)
    if is_count(text.get("kv_lora_rank")):
        return num_layers * itemsize * _expanded_latent_values(text)
    num_heads = required_int(text, ("num_attention_heads", "n_head", "n_heads"))
    values = 2 * _head_dim(text, num_heads)  # keys and values
    per_layer = text.get("num_key_value_heads")
    if isinstance(per_layer, list):
        return itemsize * values * sum(heads for heads in per_layer if is_count(heads))
    return num_layers * itemsize * values * _num_kv_heads(text, num_heads)


def _num_kv_heads(text: Mapping[str, Any], num_heads: int) -> int:
    if text.get("multi_query") is True and "num_key_value_heads" not in text:
        return 1
    heads = first_int(text, ("num_key_value_heads", "n_head_kv", "num_kv_heads")) or num_heads
    return max(heads, first_int(text, ("num_global_key_value_heads",)) or 0)


def _head_dim(text: Mapping[str, Any], num_heads: int) -> int:
    explicit = first_int(text, ("head_dim", "attention_head_dim"))
    hidden = explicit or required_int(text, ("hidden_size", "n_embd", "d_model")) // num_heads
    return max(hidden, first_int(text, ("global_head_dim",)) or 0)


def _expanded_latent_values(text: Mapping[str, Any]) -> int:
    """Multi-head latent attention: transformers hands the cache expanded keys and values of every head."""
    key_dim = required_int(text, ("qk_nope_head_dim",)) + required_int(text, ("qk_rope_head_dim",))
    return required_int(text, ("num_attention_heads",)) * (key_dim + required_int(text, ("v_head_dim",)))
