"""Whether a checkpoint that comes quantized can run here, and how its weights lie in memory then.

The table says what transformers' loader asks of the machine (its `quantizers/`, version 5.17 to 5.23), so
that what cannot run is refused when the load is planned, with what to do about it. Knows no model, no bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from inference_server.checkpoints.stored import StoredScheme
from inference_server.errors import ConfigError
from inference_server.model_manager.devices import HOST, compute_capability

Capability = tuple[int, int]  # a GPU's, by CUDA's numbers: (8, 9) and above computes with 8-bit floats


@dataclass(frozen=True, slots=True)
class Machine:
    """What the schemes ask of a machine: installed modules, and a GPU's compute capability if it is known."""

    has_module: Callable[[str], bool]
    capability: Callable[[str], Capability | None]


@dataclass(frozen=True, slots=True)
class _Needs:
    """What one scheme asks for. `packages`, also of `codes_packages`: module → what to install.

    A scheme that `unpacks` is loaded as plain weights where it cannot be computed from its codes: that takes
    a GPU of at least `codes_from` (None: no GPU does), or a CPU with `codes_on_cpu`, and `codes_packages`.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    cpu: bool = True
    gpu_from: Capability = (0, 0)
    unpacks: bool = False
    codes_on_cpu: bool = False
    codes_from: Capability | None = None
    codes_packages: Mapping[str, str] = field(default_factory=dict)


_KERNELS = {"kernels": "kernels"}
_GPTQMODEL = {"gptqmodel": "gptqmodel"}
_FP8 = _Needs(unpacks=True, codes_from=(8, 9), codes_packages=_KERNELS)
_NEEDS: Mapping[str, _Needs] = {
    "bitsandbytes": _Needs({"bitsandbytes": "helixflow[bnb]"}),
    "gptq": _Needs({"optimum": "optimum", **_GPTQMODEL}),
    "awq": _Needs(_GPTQMODEL),
    "auto-round": _Needs({"auto_round": "auto-round"}),
    "compressed-tensors": _Needs({"compressed_tensors": "helixflow[compressed-tensors]"}, unpacks=True),
    "fp8": _FP8,
    "mxfp8": _FP8,
    "fbgemm-fp8": _Needs({"fbgemm_gpu": "fbgemm-gpu"}, cpu=False, gpu_from=(9, 0)),
    "mxfp4": _Needs(
        unpacks=True,
        codes_on_cpu=True,
        codes_from=(7, 5),
        codes_packages={"triton": "triton", **_KERNELS},
    ),
    "torchao": _Needs({"torchao": "torchao"}),
    "quanto": _Needs({"optimum.quanto": "optimum-quanto"}),
    "hqq": _Needs({"hqq": "hqq"}, cpu=False),
    "aqlm": _Needs({"aqlm": "aqlm[gpu,cpu]"}),
    "quark": _Needs({"quark": "amd-quark"}),
    "vptq": _Needs({"vptq": "vptq"}, cpu=False),
    "spqr": _Needs({"spqr_quant": "spqr_quant[gpu]"}, cpu=False),
    "eetq": _Needs(_KERNELS, cpu=False),
    "higgs": _Needs(
        {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"}, cpu=False
    ),
    "bitnet": _Needs(),
}


STORED_NAMES = ("gptq", "awq", "fp8", "compressed-tensors", "mxfp4")  # those that models.yaml may name


def is_unpacked(scheme: StoredScheme, device: str, machine: Machine) -> bool:
    """Whether the loader turns the weights into plain ones on `device`, where else they stay as stored.

    Raises:
        ConfigError: they cannot be loaded there; says why and what to do.
    """
    needs = _NEEDS.get(scheme.method)
    if needs is None:
        raise _refusal(scheme, "which no loader here knows", "choose another checkpoint of the model")
    on_cpu = device == HOST
    capability = None if on_cpu else machine.capability(device)
    if on_cpu and not needs.cpu:
        raise _refusal(scheme, "which needs a GPU", "choose device: cuda or another checkpoint of the model")
    if capability is not None and capability < needs.gpu_from:
        raise _refusal(
            scheme,
            f"which needs compute capability {_shown(needs.gpu_from)}; {device} has {_shown(capability)}",
            "choose another checkpoint of the model",
        )
    _require(scheme, needs.packages, machine)
    return needs.unpacks and not _runs_from_codes(needs, on_cpu, capability, machine)


def _runs_from_codes(needs: _Needs, on_cpu: bool, capability: Capability | None, machine: Machine) -> bool:
    if on_cpu:
        able = needs.codes_on_cpu
    else:
        able = needs.codes_from is not None and capability is not None and capability >= needs.codes_from
    return able and not _missing(needs.codes_packages, machine)


def _require(scheme: StoredScheme, packages: Mapping[str, str], machine: Machine) -> None:
    if missing := _missing(packages, machine):
        names = " and ".join(packages[module] for module in missing)
        command = " ".join(f"'{packages[module]}'" for module in missing)
        raise _refusal(scheme, f"which needs {names}", f"pip install {command}")


def _missing(packages: Mapping[str, str], machine: Machine) -> list[str]:
    return [module for module in packages if not machine.has_module(module)]


def _refusal(scheme: StoredScheme, reason: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"the checkpoint comes quantized as {scheme.name}, {reason}; {remedy}", param="quantization"
    )


def _shown(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def has_module(name: str) -> bool:
    """Whether a module is installed, found out without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package is not there
        return False


THIS_MACHINE = Machine(has_module=has_module, capability=compute_capability)
