"""Checkpoints that come quantized: which scheme config.json names, and how many weights that is.

Pure: knows neither which machine can run a scheme nor how many bytes a weight takes once loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.checkpoints.facts import is_count
from inference_server.checkpoints.headers import TensorInfo

_BITSANDBYTES = "bitsandbytes"
# What stands beside codes; gone once these are unpacked.
_COMPANIONS = (
    "_scale", "_scale_inv", "_scales", ".scale", ".scales", "_zero_point", "_shape", "_g_idx",
)  # fmt: skip
_PACKED = ("_packed", "_blocks")  # several codes share one number
_BITS = {"I32": 32, "U8": 8, "I8": 8}


@dataclass(frozen=True, slots=True)
class StoredScheme:
    """`method` is transformers' name of the scheme ("unknown" if none is given), `name` ours.

    They differ for bitsandbytes, whose 4-bit and 8-bit forms are schemes of their own in models.yaml.
    """

    method: str
    name: str


def stored_scheme(config: Mapping[str, Any]) -> StoredScheme | None:
    """The scheme in which the weights lie on disk; None if they are plain."""
    found = config.get("quantization_config")
    if not isinstance(found, dict) or not found:
        return None
    method = str(found.get("quant_method") or "unknown").lower().replace("_", "-")
    if found.get("load_in_4bit"):
        kind = str(found.get("bnb_4bit_quant_type") or "fp4")
        return StoredScheme(method=_BITSANDBYTES, name=f"bnb-{kind}")
    if found.get("load_in_8bit"):
        return StoredScheme(method=_BITSANDBYTES, name="bnb-int8")
    return StoredScheme(method=method, name=method)


def unpacked_weights(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> int:
    """Numbers that the tensors hold once their codes have been turned into plain weights."""
    code_bits = _code_bits(config)
    return sum(
        _num_weights(name, tensor, code_bits)
        for name, tensor in tensors.items()
        if not name.endswith(_COMPANIONS)
    )


def _num_weights(name: str, tensor: TensorInfo, code_bits: int) -> int:
    if name.endswith(_PACKED) and tensor.dtype in _BITS:
        return tensor.num_elements * _BITS[tensor.dtype] // code_bits
    return tensor.num_elements


def _code_bits(config: Mapping[str, Any]) -> int:
    """Bits of a packed code: the fewest that a group of compressed-tensors has; 4 where nothing says it."""
    groups = config.get("quantization_config", {}).get("config_groups")
    parts = groups.values() if isinstance(groups, dict) else ()
    weights = [part.get("weights") for part in parts if isinstance(part, dict)]
    bits = [part.get("num_bits") for part in weights if isinstance(part, dict)]
    return min(filter(is_count, bits), default=4)
