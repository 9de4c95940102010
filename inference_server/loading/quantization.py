"""How a model's `quantization` setting becomes an argument of transformers' loader."""

from __future__ import annotations

from typing import Any

import torch

from inference_server.errors import ModelLoadFailed


def quantization_config(scheme: str, dtype: torch.dtype) -> Any | None:
    """The transformers quantization config for `scheme`, or None for unquantized weights.

    bitsandbytes' own defaults (fp4, float32 arithmetic) are neither accurate nor fast; nf4 with double
    quantization (QLoRA, arXiv:2305.14314) and the model's dtype are. int8 runs with threshold 0
    (LLM.int8(), arXiv:2208.07339, without the outlier path), which needs no synchronisation per layer.

    Raises:
        ModelLoadFailed: bitsandbytes is not installed, or the scheme is unknown.
    """
    if scheme == "none":
        return None
    if scheme in ("int8", "int4", "gguf"):
        raise ModelLoadFailed(
            f"quantization {scheme!r} is for the native CPU kernels, not for torch", param="quantization"
        )
    if scheme not in ("bnb-nf4", "bnb-int8"):
        raise ModelLoadFailed(f"quantization {scheme!r} is not known to the loader", param="quantization")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelLoadFailed(
            f"quantization {scheme!r} needs the bitsandbytes package: pip install 'helixflow[bnb]'",
            param="quantization",
        ) from error
    from transformers import BitsAndBytesConfig

    if scheme == "bnb-nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def unpacking_config(scheme: str) -> Any:
    """The transformers config that turns weights stored in `scheme` into plain ones while they are loaded.

    Raises:
        ModelLoadFailed: transformers has none.
    """
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

    configs = {
        "compressed-tensors": CompressedTensorsConfig,
        "fp8": FineGrainedFP8Config,
        "mxfp8": FineGrainedFP8Config,
        "mxfp4": Mxfp4Config,
    }
    if scheme not in configs:
        raise ModelLoadFailed(f"weights stored as {scheme!r} cannot be unpacked", param="quantization")
    return configs[scheme](dequantize=True)
