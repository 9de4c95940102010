"""What computes a model: our native CPU kernels or torch, and in which quantization and dtype. A pure choice.

An entry that forces what cannot be is refused with the reason; "auto" takes the native kernels where model
and machine allow it. Knows neither bytes nor what else is resident.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_server.checkpoints.block_headers import block_bits
from inference_server.checkpoints.facts import config_dtype
from inference_server.checkpoints.headers import read_checkpoint
from inference_server.checkpoints.native import native_cpu, native_support
from inference_server.checkpoints.native_weights import unexpected_weights
from inference_server.checkpoints.stored import StoredScheme, stored_scheme
from inference_server.config.catalog import ModelSpec
from inference_server.errors import ConfigError
from inference_server.model_manager.devices import HOST
from inference_server.model_manager.stored import (
    STORED_NAMES,
    THIS_MACHINE,
    Machine,
    has_module,
    is_unpacked,
)

NATIVE_ONLY = ("int8", "int4", "gguf")  # quantizations that torch does not run
TORCH_ONLY = ("bnb-int8", "bnb-nf4")  # the larger first
_CPU_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_DTYPES = ("float32", "bfloat16", "float16")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model will be computed. `block_bits`: the tensors that lie in blocks on disk, and their bits.

    `is_stored`: the checkpoint comes quantized as `quantization`; if it `unpacks`, its weights become plain.
    """

    kernels: str
    quantization: str
    dtype: str
    block_bits: Mapping[str, int]
    is_stored: bool = False
    unpacks: bool = False
    why: str = ""  # where the quantization comes from


def needs_native(spec: ModelSpec) -> bool:
    """Whether the entry asks for what only the native CPU kernels do."""
    return spec.kernels == "native" or spec.quantization in NATIVE_ONLY


def choose_execution(
    spec: ModelSpec,
    folder: Path,
    config: Mapping[str, Any],
    device: str,
    flags: frozenset[str],
    machine: Machine = THIS_MACHINE,
) -> Execution:
    """Choose for `spec` on `device`; `flags` are the CPU's instruction sets.

    Raises:
        ConfigError: the entry asks for native kernels, or for a quantization that needs them, in vain; or
            the checkpoint comes quantized in a way that the entry contradicts or that cannot run here.
        FetchFailed: the folder is damaged.
    """
    if (stored := stored_scheme(config)) is not None:
        return _stored_execution(spec, stored, config, device, flags, machine)
    _refuse_what_is_not_stored(spec)
    bits = block_bits(folder)
    reason = _why_torch(spec, folder, config, device, flags)
    if reason is None:
        quantization = _native_quantization(spec, bits)
        why = _why(spec, quantization, None)
        execution = Execution("native", quantization, _native_dtype(spec, config), bits, why=why)
    else:
        _refuse_what_torch_lacks(spec, reason)
        quantization = "none" if spec.quantization == "auto" else spec.quantization
        dtype = resolve_dtype(spec.dtype, config_dtype(config), device, flags)
        execution = Execution("torch", quantization, dtype, bits, why=_why(spec, quantization, reason))
    _log(spec, execution, reason, device)
    return execution


def smaller_quantizations(
    execution: Execution, has_module: Callable[[str], bool] = has_module
) -> tuple[str, ...]:
    """What "auto" may try instead, the best first, where the weights of `execution` do not fit."""
    if execution.is_stored:
        return ()
    if execution.kernels == "native":
        return tuple(name for name in ("int8", "int4") if name != execution.quantization)
    return TORCH_ONLY if has_module("bitsandbytes") else ()


def _stored_execution(
    spec: ModelSpec,
    stored: StoredScheme,
    config: Mapping[str, Any],
    device: str,
    flags: frozenset[str],
    machine: Machine,
) -> Execution:
    if spec.quantization not in ("auto", stored.name):
        raise ConfigError(
            f"{spec.name!r} wants quantization {spec.quantization!r}, but its checkpoint comes quantized as "
            f"{stored.name}; use quantization: auto, or choose another checkpoint of the model",
            param="quantization",
        )
    if spec.kernels == "native":
        reason = "they do not support weights that are already quantized"
        raise ConfigError(
            f"{spec.name!r} wants the native kernels: {reason}; use kernels: auto or torch", param="kernels"
        )
    unpacks = is_unpacked(stored, device, machine)
    dtype = resolve_dtype(spec.dtype, config_dtype(config), device, flags)
    how = f"unpacked to {dtype}" if unpacks else f"as stored, {dtype}"
    logger.info("%s: the checkpoint comes quantized as %s; on %s %s", spec.name, stored.name, device, how)
    why = f"the checkpoint comes quantized; {how}"
    return Execution("torch", stored.name, dtype, {}, is_stored=True, unpacks=unpacks, why=why)


def _refuse_what_is_not_stored(spec: ModelSpec) -> None:
    if spec.quantization in STORED_NAMES:
        raise ConfigError(
            f"{spec.name!r} wants quantization {spec.quantization!r}, but its checkpoint is not, and "
            "nothing here quantizes so; use quantization: auto, int8, int4, bnb-int8 or bnb-nf4",
            param="quantization",
        )


def resolve_dtype(wanted: str, stored: str | None, device: str, flags: frozenset[str]) -> str:
    """Torch's compute dtype. "auto" is the checkpoint's on a GPU; on a CPU bfloat16 only where it is fast."""
    if wanted != "auto":
        return wanted
    checkpoint = stored if stored in _DTYPES else "bfloat16"
    if device != HOST:
        return checkpoint
    return "bfloat16" if checkpoint != "float32" and flags & _CPU_BFLOAT16_FLAGS else "float32"


def _why_torch(
    spec: ModelSpec, folder: Path, config: Mapping[str, Any], device: str, flags: frozenset[str]
) -> str | None:
    """None if the native kernels can do what the entry asks for, else the reason why torch has to."""
    if spec.kernels == "torch":
        return "the entry says kernels: torch"
    if device != HOST:
        return f"they run on CPUs, not on {device}"
    if spec.quantization in TORCH_ONLY:
        return f"they do not know quantization {spec.quantization}"
    if spec.dtype == "float16":
        return "they do not know dtype float16"
    if (lacking := native_cpu(flags)) is not None:
        return lacking
    if not _has_numba():
        return "the numba package is not installed"
    if (unsupported := native_support(config)) is not None:
        return f"they do not support {unsupported}"
    return unexpected_weights(config, read_checkpoint(folder))


def _native_quantization(spec: ModelSpec, bits: Mapping[str, int]) -> str:
    if spec.quantization == "auto":
        return "gguf" if bits else "none"
    if spec.quantization == "gguf" and not bits:
        raise ConfigError(
            f"{spec.name!r} wants quantization 'gguf', but its source is no GGUF file with tensors "
            "in Q4_0, Q4_1 or Q8_0; int4 and int8 quantize any checkpoint",
            param="quantization",
        )
    return spec.quantization


def _native_dtype(spec: ModelSpec, config: Mapping[str, Any]) -> str:
    """ "auto" keeps every weight as it is: float16 ones fit into float32, not into bfloat16."""
    if spec.dtype != "auto":
        return spec.dtype
    return "bfloat16" if config_dtype(config) == "bfloat16" else "float32"


def _why(spec: ModelSpec, quantization: str, why_torch: str | None) -> str:
    """Where a quantization comes from, and why torch computes it, if it does."""
    if spec.quantization != "auto":
        choice = "as the entry says"
    elif quantization == "gguf":
        choice = "auto: the GGUF file's own blocks"
    else:
        choice = "auto: the weights as they come"
    return choice if why_torch is None else f"{choice}; torch, since {_subject(why_torch)}"


def _subject(why_torch: str) -> str:
    """The reason with the native kernels by name, as nobody has spoken of them before."""
    if not why_torch.startswith("they "):
        return why_torch
    return "the native kernels " + why_torch.removeprefix("they ")


def _refuse_what_torch_lacks(spec: ModelSpec, reason: str) -> None:
    if spec.quantization in NATIVE_ONLY:
        raise ConfigError(
            f"{spec.name!r} wants quantization {spec.quantization!r}, which needs the native CPU kernels: "
            f"{reason}; use quantization: none, bnb-nf4 or bnb-int8",
            param="quantization",
        )
    if spec.kernels == "native":
        raise ConfigError(
            f"{spec.name!r} wants the native kernels: {reason}; use kernels: auto or torch", param="kernels"
        )


def _log(spec: ModelSpec, execution: Execution, reason: str | None, device: str) -> None:
    if device != HOST:
        return
    how = f"quantization {execution.quantization}, {execution.dtype}"
    if reason is None:
        logger.info("%s: native CPU kernels, %s", spec.name, how)
    else:
        logger.info("%s: torch and not the native CPU kernels (%s), %s", spec.name, reason, how)


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None
