"""Which checkpoints that come quantized run on which machine, and what the others are told."""

from __future__ import annotations

import pytest

from inference_server.checkpoints.stored import StoredScheme
from inference_server.errors import ConfigError
from inference_server.model_manager.stored import STORED_NAMES, Machine, has_module, is_unpacked

HOPPER, AMPERE, PASCAL = (9, 0), (8, 0), (6, 1)


def machine(*modules: str, capability: tuple[int, int] | None = None) -> Machine:
    return Machine(has_module=lambda name: name in modules, capability=lambda device: capability)


def scheme(method: str) -> StoredScheme:
    return StoredScheme(method=method, name=method)


@pytest.mark.parametrize(
    ("method", "device", "here", "unpacks"),
    [
        ("gptq", "cpu", machine("optimum", "gptqmodel"), False),
        ("gptq", "cuda:0", machine("optimum", "gptqmodel", capability=AMPERE), False),
        ("awq", "cpu", machine("gptqmodel"), False),
        ("bitsandbytes", "cpu", machine("bitsandbytes"), False),
        ("compressed-tensors", "cpu", machine("compressed_tensors"), True),
        ("compressed-tensors", "cuda:0", machine("compressed_tensors", capability=HOPPER), True),
        ("fp8", "cpu", machine(), True),
        ("fp8", "cpu", machine("kernels"), True),
        ("fp8", "cuda:0", machine("kernels", capability=AMPERE), True),
        ("fp8", "cuda:0", machine(capability=HOPPER), True),
        ("fp8", "cuda:0", machine("kernels", capability=HOPPER), False),
        ("fbgemm-fp8", "cuda:0", machine("fbgemm_gpu", capability=HOPPER), False),
        ("mxfp4", "cpu", machine(), True),
        ("mxfp4", "cpu", machine("triton", "kernels"), False),
        ("mxfp4", "cuda:0", machine("triton", capability=HOPPER), True),
        ("mxfp4", "cuda:0", machine("triton", "kernels", capability=PASCAL), True),
        ("mxfp4", "cuda:0", machine("triton", "kernels", capability=HOPPER), False),
        ("bitnet", "cpu", machine(), False),
    ],
)
def test_weights_stay_as_stored_where_they_can_be_computed_so(
    method: str, device: str, here: Machine, unpacks: bool
) -> None:
    assert is_unpacked(scheme(method), device, here) == unpacks


@pytest.mark.parametrize(
    ("method", "device", "here", "message"),
    [
        ("gptq", "cpu", machine(), "needs optimum and gptqmodel; pip install 'optimum' 'gptqmodel'"),
        ("gptq", "cpu", machine("optimum"), "which needs gptqmodel; pip install 'gptqmodel'"),
        ("awq", "cuda:0", machine(capability=HOPPER), "pip install 'gptqmodel'"),
        ("bitsandbytes", "cpu", machine(), r"pip install 'helixflow\[bnb\]'"),
        ("compressed-tensors", "cpu", machine(), r"pip install 'helixflow\[compressed-tensors\]'"),
        (
            "fbgemm-fp8",
            "cpu",
            machine("fbgemm_gpu"),
            "needs a GPU; choose device: cuda or",
        ),
        (
            "fbgemm-fp8",
            "cuda:0",
            machine("fbgemm_gpu", capability=AMPERE),
            r"9\.0; cuda:0 has 8\.0",
        ),
        ("hqq", "cpu", machine("hqq"), "needs a GPU"),
        ("nvfp4", "cuda:0", machine(capability=HOPPER), "no loader here knows; choose another checkpoint"),
        ("unknown", "cpu", machine(), "choose another checkpoint"),
    ],
)
def test_what_cannot_run_here_is_refused_with_the_reason_and_what_to_do(
    method: str, device: str, here: Machine, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        is_unpacked(scheme(method), device, here)
    assert caught.value.param == "quantization"
    assert f"comes quantized as {method}" in caught.value.message


def test_each_scheme_that_an_entry_may_name_is_known() -> None:
    everything = Machine(has_module=lambda name: True, capability=lambda device: HOPPER)
    for name in STORED_NAMES:
        is_unpacked(scheme(name), "cuda:0", everything)


def test_modules_are_found_without_importing_them() -> None:
    assert has_module("transformers")
    assert not has_module("no_such_module")
    assert not has_module("no_such_package.module")
