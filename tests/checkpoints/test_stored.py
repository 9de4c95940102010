"""Checkpoints that come quantized, as their config.json and headers describe them."""

from __future__ import annotations

from typing import Any

import pytest

from inference_server.checkpoints.headers import TensorInfo
from inference_server.checkpoints.stored import StoredScheme, stored_scheme, unpacked_weights


@pytest.mark.parametrize(
    ("found", "method", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq", "gptq"),
        ({"quant_method": "awq"}, "awq", "awq"),
        ({"quant_method": "fp8"}, "fp8", "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm-fp8", "fbgemm-fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors", "compressed-tensors"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes", "bnb-nf4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "bnb-fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", "bnb-int8"),
        ({"bits": 3}, "unknown", "unknown"),
    ],
)
def test_the_scheme_is_what_the_config_says(found: dict[str, Any], method: str, name: str) -> None:
    assert stored_scheme({"quantization_config": found}) == StoredScheme(method, name)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_plain_checkpoint_has_none(config: dict[str, Any]) -> None:
    assert stored_scheme(config) is None


def tensor(dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(dtype=dtype, shape=shape, nbytes=0)  # bytes play no part


def test_codes_of_eight_bits_are_one_weight_each_and_scales_are_none() -> None:
    tensors = {
        "a.weight": tensor("F8_E4M3", 64, 32),
        "a.weight_scale_inv": tensor("F32", 1, 1),
        "b.weight": tensor("I8", 16, 16),
        "b.weight_scale": tensor("BF16", 16, 1),
        "norm.weight": tensor("BF16", 64),
    }
    assert unpacked_weights(tensors, {}) == 64 * 32 + 16 * 16 + 64


@pytest.mark.parametrize(("num_bits", "per_number"), [(4, 8), (8, 4)])
def test_packed_codes_are_as_many_weights_as_the_config_says(num_bits: int, per_number: int) -> None:
    config = {"quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": num_bits}}}}}
    tensors = {
        "a.weight_packed": tensor("I32", 64, 8),
        "a.weight_scale": tensor("BF16", 64, 2),
        "a.weight_shape": tensor("I64", 2),
    }
    assert unpacked_weights(tensors, config) == 64 * 8 * per_number


def test_blocks_of_mxfp4_hold_two_weights_per_byte() -> None:
    blocks, scales = tensor("U8", 4, 64, 2, 16), tensor("U8", 4, 64, 2)
    tensors = {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
    assert unpacked_weights(tensors, {"quantization_config": {"quant_method": "mxfp4"}}) == 4 * 64 * 64


@pytest.mark.parametrize("groups", [None, [], {"g": None}, {"g": {"weights": None}}, {"g": {"weights": {}}}])
def test_a_config_that_says_nothing_of_use_means_four_bits(groups: object) -> None:
    config = {"quantization_config": {"config_groups": groups}}
    assert unpacked_weights({"a.weight_packed": tensor("I32", 1, 1)}, config) == 8
