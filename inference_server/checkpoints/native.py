"""Which models and CPUs the native kernels (`execution/native/`) run, from config.json and CPU flags alone.

They compute whole steps of Llama-like models: RMS norms, rotary attention with grouped heads, a gated MLP.
Anything else is named with its reason and runs through torch. Pure; knows neither weights nor devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.checkpoints.facts import is_count

CPU_FLAGS = frozenset({"avx2", "fma", "f16c"})  # what the kernels' vectors need, as /proc/cpuinfo names them
GROUP = 32  # inputs of a quantized block: rows of a matrix are whole blocks

_ACTIVATIONS = frozenset({"silu", "gelu_pytorch_tanh"})
_STATIC_ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # the same angles for any batch
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class _Family:
    """How a model type differs from Llama."""

    activation_key: str = "hidden_act"
    qkv_bias: bool = False
    head_norms: bool = False  # queries and keys are normalised per head
    branch_norms: bool = False  # so are the outputs of attention and MLP
    own_head_dim: bool = False  # where the config names none, it is not hidden size / heads
    tied_by_default: bool = False
    names_kv_heads: bool = True  # a config that names no key-value heads means another number than all heads


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(names_kv_heads=False),
    "mistral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(head_norms=True, own_head_dim=True),
    "gemma3_text": _Family(
        activation_key="hidden_activation",
        head_norms=True,
        branch_norms=True,
        own_head_dim=True,
        tied_by_default=True,
    ),
}


@dataclass(frozen=True, slots=True)
class NativeShape:
    """A supported model's sizes, and the vectors that its layers have."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool  # embedding and output head are one matrix
    qkv_bias: bool
    head_norms: bool
    branch_norms: bool
    num_ropes: int  # rotary tables: one, or one per layer type

    @property
    def query_size(self) -> int:
        """Numbers of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Numbers of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim


def native_support(config: Mapping[str, Any]) -> str | None:
    """None if the kernels compute this config.json's model, else the reason why not."""
    return next(_obstacles(config), None)


def native_cpu(flags: frozenset[str]) -> str | None:
    """None if a CPU with these flags runs the kernels, else the reason why not."""
    missing = sorted(CPU_FLAGS - flags)
    return f"this CPU lacks {', '.join(missing)}" if missing else None


def native_shape(config: Mapping[str, Any]) -> NativeShape:
    """The sizes of a config for which `native_support` is None."""
    family = _FAMILIES[config["model_type"]]
    return NativeShape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=_num_kv_heads(config),
        head_dim=_head_dim(config),
        vocab_size=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", family.tied_by_default)),
        qkv_bias=family.qkv_bias,
        head_norms=family.head_norms,
        branch_norms=family.branch_norms,
        num_ropes=_num_ropes(config),
    )


def _obstacles(config: Mapping[str, Any]) -> Iterator[str]:
    """Every reason why not; later ones rely on earlier ones not having been given."""
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        yield f"model type {config.get('model_type')!r}"
        return
    if "quantization_config" in config:
        yield "weights that are already quantized"
    if config.get("auto_map"):
        yield "code of its own"
    yield from _size_obstacles(config, family)
    yield from _layer_obstacles(config, family)
    yield from _rope_obstacles(config)


def _size_obstacles(config: Mapping[str, Any], family: _Family) -> Iterator[str]:
    for name in _SIZES:
        if not is_count(config.get(name)):
            yield f"no {name} in config.json"
            return
    if family.own_head_dim and not is_count(config.get("head_dim")):
        yield "no head_dim in config.json"
        return
    if family.names_kv_heads and "num_key_value_heads" not in config:
        yield "no num_key_value_heads in config.json"
        return
    heads, kv_heads, head_dim = config["num_attention_heads"], _num_kv_heads(config), _head_dim(config)
    if heads % kv_heads:
        yield f"{heads} heads that do not share {kv_heads} key-value heads evenly"
    if head_dim % GROUP:
        yield f"heads of {head_dim}, which is no multiple of {GROUP}"
    for name in ("hidden_size", "intermediate_size"):
        if config[name] % GROUP:
            yield f"{name} {config[name]}, which is no multiple of {GROUP}"


def _layer_obstacles(config: Mapping[str, Any], family: _Family) -> Iterator[str]:
    activation = config.get(family.activation_key) or config.get("hidden_act")
    if activation not in _ACTIVATIONS:
        yield f"activation {activation!r}"
    if config.get("attention_bias") and not family.qkv_bias:
        yield "a bias on attention's output"
    if config.get("mlp_bias"):
        yield "biases in the MLP"
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name):
            yield name
    if config.get("use_bidirectional_attention"):
        yield "bidirectional attention"
    others = sorted(set(_layer_types(config)) - _LAYER_TYPES)
    if others:
        yield f"layers of type {others[0]}"


def _rope_obstacles(config: Mapping[str, Any]) -> Iterator[str]:
    for rope in (config, *_ropes(config)):
        share = rope.get("partial_rotary_factor")
        if share is not None and share != 1:
            yield "partial rotary embeddings"
    for rope in _ropes(config):
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind not in _STATIC_ROPES:
            yield f"rotary embeddings of type {kind}"


def _ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rotary parameters, one set or one per layer type; older configs call them `rope_scaling`."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, dict):
        return []
    nested: list[Mapping[str, Any]] = [part for part in found.values() if isinstance(part, dict)]
    return nested or [found]


def _num_ropes(config: Mapping[str, Any]) -> int:
    """Gemma 3 rotates sliding layers by other angles than full ones."""
    if config["model_type"] != "gemma3_text":
        return 1
    return len(set(_layer_types(config))) or 2


def _layer_types(config: Mapping[str, Any]) -> list[str]:
    found = config.get("layer_types")
    return [str(kind) for kind in found] if isinstance(found, list) else []


def _num_kv_heads(config: Mapping[str, Any]) -> int:
    found = config.get("num_key_value_heads")
    return found if is_count(found) else int(config["num_attention_heads"])


def _head_dim(config: Mapping[str, Any]) -> int:
    found = config.get("head_dim")
    return found if is_count(found) else int(config["hidden_size"]) // int(config["num_attention_heads"])
