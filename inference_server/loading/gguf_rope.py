"""The scaling of rotary embeddings that a GGUF file describes, brought into transformers' configuration.

Transformers' GGUF reader takes over the base frequency only. llama.cpp has `ARCH.rope.scaling.*`, divisors of
the frequencies as a tensor (Llama 3.1 to 3.3) and two lists of such divisors (Phi-3). What cannot be said in
transformers' terms is refused: answers would be wrong. Part of a conversion; imports transformers late.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference_server.checkpoints.gguf import GgufHeader
from inference_server.errors import FetchFailed
from inference_server.loading.gguf_blocks import mapped

_DIVISORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_FLOAT32 = 0  # ggml's number of the type
_YARN_OPTIONS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_KNOWN = {"type", "factor", "original_context_length", "finetuned", *_YARN_OPTIONS}
_WITHOUT_EFFECT = {  # values that llama.cpp itself takes where the file says nothing
    "attn_factor": (1,),
    "yarn_attn_factor": (1,),
    "yarn_ext_factor": (-1, 1),
    "yarn_log_multiplier": (0,),
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOLERANCE = 1e-4

Scaling = dict[str, Any]
Values = npt.NDArray[np.float32]


def set_rope_scaling(config: Any, gguf: Path, header: GgufHeader) -> None:
    """Add to `config`, which transformers made of the file, what the file says about rotary scaling.

    Raises:
        FetchFailed: it says what transformers has no words for.
    """
    config = config.get_text_config()
    _set_rotated_share(config, header)
    said = _metadata(header)
    if _LONG in header.tensors or _SHORT in header.tensors:
        _set(config, _long_and_short(config, gguf, header, said))
        return
    for name, value in said.items():
        if name not in _KNOWN and value not in _WITHOUT_EFFECT.get(name, ()):
            raise _refusal(f"rope.scaling.{name} = {value} is not supported")
    scaling = _linear_or_yarn(config, said)
    if _DIVISORS in header.tensors:
        if scaling:
            raise _refusal(f"{scaling['rope_type']} scaling together with {_DIVISORS} is not supported")
        _set_divisors(config, _values(gguf, header, _DIVISORS))
    _set(config, scaling)


def _set_rotated_share(config: Any, header: GgufHeader) -> None:
    """How much of each head is rotated, in families where it may be a part (Phi-4-mini: three quarters)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    rotated = header.metadata.get(f"{header.architecture}.rope.dimension_count")
    if "partial_rotary_factor" not in parameters or not isinstance(rotated, int):
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if int(head_dim * parameters["partial_rotary_factor"]) != rotated:
        config.rope_parameters = parameters | {"partial_rotary_factor": rotated / head_dim}


def _metadata(header: GgufHeader) -> dict[str, Any]:
    prefix = f"{header.architecture}.rope.scaling."
    said = {
        key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
    }
    old_factor = header.metadata.get(f"{header.architecture}.rope.scale_linear")
    return {"factor": old_factor, **said} if old_factor is not None else said


def _linear_or_yarn(config: Any, said: dict[str, Any]) -> Scaling:
    kind = said.get("type", "linear")  # as llama.cpp reads a factor without a type
    factor = float(said.get("factor", 0)) or 1.0
    if kind not in ("none", "linear", "yarn"):
        raise _refusal(f"the type {kind} is not supported")
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    options = {ours: float(said[name]) for name, ours in _YARN_OPTIONS.items() if name in said}
    original = int(said.get("original_context_length", config.max_position_embeddings))
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        **options,
    }


def _long_and_short(config: Any, gguf: Path, header: GgufHeader, said: dict[str, Any]) -> Scaling:
    """Phi-3's: one list for contexts up to the original length, one for longer ones."""
    if not {_LONG, _SHORT} <= header.tensors.keys() or "original_context_length" not in said:
        raise _refusal("long and short divisors must come together and with an original context length")
    original = int(said["original_context_length"])
    config.original_max_position_embeddings = original  # Phi-3's configuration keeps it there
    scaling = {
        "rope_type": "longrope",
        "long_factor": _values(gguf, header, _LONG).tolist(),
        "short_factor": _values(gguf, header, _SHORT).tolist(),
        "original_max_position_embeddings": original,
    }
    return scaling | ({"attention_factor": float(said["attn_factor"])} if "attn_factor" in said else {})


def _set_divisors(config: Any, divisors: Values) -> None:
    """Find the parameters whose formula gives these divisors of the frequencies, and set them."""
    if np.allclose(divisors, 1):
        return
    before = config.rope_parameters
    for scaling in ({}, {"rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA3}):
        _set(config, scaling)
        if any(_matches(shares, divisors) for shares in _shares(config, 2 * len(divisors))):
            return
        config.rope_parameters = before
    raise _refusal(f"the divisors in {_DIVISORS} are not those of Llama 3.1, 3.2 or 3.3")


def _shares(config: Any, dim: int) -> Iterator[Values]:
    """What transformers would make of the plain frequencies, as factors; once per layer type."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for layer_type, parameters in _per_layer_type(config).items():
        if (formula := ROPE_INIT_FUNCTIONS.get(parameters["rope_type"])) is None:
            continue
        extra = {} if layer_type is None else {"layer_type": layer_type}
        frequencies, _ = formula(config, "cpu", **extra)
        plain = float(parameters["rope_theta"]) ** -(np.arange(0, dim, 2) / dim)
        if frequencies.shape == plain.shape:
            yield (frequencies.numpy() / plain).astype(np.float32)


def _matches(shares: Values, divisors: Values) -> bool:
    return bool(np.allclose(shares, 1 / divisors, rtol=_TOLERANCE, atol=1e-7))


def _set(config: Any, scaling: Scaling) -> None:
    """Gemma 3 scales its layers with full attention only, as llama.cpp does."""
    if not scaling:
        return
    found = _per_layer_type(config)
    if None in found:
        config.rope_parameters = found[None] | scaling
    elif "full_attention" in found:
        config.rope_parameters = config.rope_parameters | {
            "full_attention": found["full_attention"] | scaling
        }
    else:
        raise _refusal(f"transformers' {type(config).__name__} has none")


def _per_layer_type(config: Any) -> dict[str | None, Scaling]:
    """Rotary parameters by layer type, or one set under None."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = {name: part for name, part in parameters.items() if isinstance(part, dict)}
    return nested or ({None: parameters} if parameters else {})


def _values(gguf: Path, header: GgufHeader, name: str) -> Values:
    tensor = header.tensors[name]
    if tensor.kind != _FLOAT32 or len(tensor.shape) != 1:
        raise _refusal(f"{name} is no list of float32 numbers")
    with mapped(gguf) as data:
        values = np.frombuffer(data[tensor.start : tensor.start + 4 * tensor.shape[0]], dtype="<f4")
    if len(values) != tensor.shape[0] or not np.all(np.isfinite(values) & (values > 0)):
        raise _refusal(f"{name} is damaged")
    return values


def _refusal(reason: str) -> FetchFailed:
    return FetchFailed(f"the GGUF file's rotary embeddings are scaled: {reason}; take safetensors instead")
