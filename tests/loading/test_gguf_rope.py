from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from inference_server.checkpoints.gguf import read_gguf_header
from inference_server.errors import FetchFailed
from inference_server.loading.convert import convert_gguf
from inference_server.loading.gguf_rope import set_rope_scaling
from tests.loading.gguf_files import HEADS, HIDDEN, write_gguf

Writer = gguf.GGUFWriter
Describe = Callable[[Writer], None]
YARN, LINEAR, NONE = gguf.RopeScalingType.YARN, gguf.RopeScalingType.LINEAR, gguf.RopeScalingType.NONE
HEAD_DIM = HIDDEN // HEADS


def converted_rope(tmp_path: Path, describe: Describe) -> dict[str, Any]:
    """The rotary parameters of a tiny llama with this metadata, from the converted config.json."""
    path = write_gguf(tmp_path / "x.gguf", describe=describe)
    (tmp_path / "out").mkdir()
    convert_gguf(path, tmp_path / "out", lambda *_: None)
    found: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    return found


def scaled(kind: gguf.RopeScalingType, factor: float, original: int | None = None) -> Describe:
    def describe(writer: Writer) -> None:
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_finetuned(True)
        if original is not None:
            writer.add_rope_scaling_orig_ctx_len(original)

    return describe


def llama3_divisors(dim: int, theta: float, factor: float, original: int = 8192) -> list[float]:
    """As llama.cpp's converter computes them: one of each frequency, by its wave length."""
    divisors = []
    for index in range(0, dim, 2):
        length = 2 * math.pi * theta ** (index / dim)
        if length < original / 4:
            divisors.append(1.0)
        elif length > original / 1:
            divisors.append(factor)
        else:
            smooth = (original / length - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def with_tensor(name: str, values: list[float]) -> Describe:
    return lambda writer: writer.add_tensor(name, np.array(values, dtype=np.float32))


def test_a_plain_file_is_not_scaled(tmp_path: Path) -> None:
    rope = converted_rope(tmp_path, lambda writer: None)
    assert rope == {"rope_type": "default", "rope_theta": 10000.0}


def test_linear_scaling_is_kept(tmp_path: Path) -> None:
    rope = converted_rope(tmp_path, scaled(LINEAR, 4.0))
    assert rope == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def test_a_factor_without_a_type_is_linear_by_its_old_name_too(tmp_path: Path) -> None:
    rope = converted_rope(tmp_path, lambda writer: writer.add_float32("llama.rope.scale_linear", 2.0))
    assert (rope["rope_type"], rope["factor"]) == ("linear", 2.0)


@pytest.mark.parametrize("describe", [scaled(NONE, 8.0), scaled(LINEAR, 1.0), scaled(LINEAR, 0.0)])
def test_what_llama_cpp_would_not_scale_is_not_scaled(tmp_path: Path, describe: Describe) -> None:
    assert converted_rope(tmp_path, describe)["rope_type"] == "default"


def test_yarn_is_kept_with_its_bounds(tmp_path: Path) -> None:
    def describe(writer: Writer) -> None:
        scaled(YARN, 4.0, 64)(writer)
        writer.add_rope_scaling_yarn_beta_fast(16.0)
        writer.add_float32("llama.rope.scaling.attn_factor", 1.0)

    assert converted_rope(tmp_path, describe) == {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
    }


def test_the_converted_model_rotates_by_the_scaled_angles(tmp_path: Path) -> None:
    converted_rope(tmp_path, scaled(YARN, 4.0, 64))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 1000.0), ("attn_factor", 1.19), ("yarn_log_multiplier", 0.1)]
)
def test_options_without_a_counterpart_are_refused(tmp_path: Path, name: str, value: float) -> None:
    def describe(writer: Writer) -> None:
        scaled(YARN, 4.0, 64)(writer)
        writer.add_float32(f"llama.rope.scaling.{name}", value)

    with pytest.raises(FetchFailed, match=rf"rope\.scaling\.{name} = "):
        converted_rope(tmp_path, describe)


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="longrope is not supported"):
        converted_rope(tmp_path, scaled(gguf.RopeScalingType.LONGROPE, 4.0))


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_llama_3s_divisors_become_its_parameters(tmp_path: Path, factor: float, head_dim: int) -> None:
    config = LlamaConfig(head_dim=head_dim, rope_theta=5e5, max_position_embeddings=131072)
    divisors = llama3_divisors(head_dim, 5e5, factor)
    path = write_gguf(tmp_path / "x.gguf", describe=with_tensor("rope_freqs.weight", divisors))
    set_rope_scaling(config, path, read_gguf_header(path))
    assert config.rope_parameters == {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_llama_3s_divisors_in_a_whole_file(tmp_path: Path) -> None:
    divisors = llama3_divisors(HEAD_DIM, 1e4, 8.0)
    assert 1 < min(set(divisors) - {1.0}) < 8  # one lies between the bounds
    rope = converted_rope(tmp_path, with_tensor("rope_freqs.weight", divisors))
    assert (rope["rope_type"], rope["factor"]) == ("llama3", 8.0)


def test_divisors_of_one_change_nothing(tmp_path: Path) -> None:
    rope = converted_rope(tmp_path, with_tensor("rope_freqs.weight", [1.0] * (HEAD_DIM // 2)))
    assert rope["rope_type"] == "default"


@pytest.mark.parametrize("divisors", [np.linspace(1, 8, HEAD_DIM // 2).tolist(), [1.0, 8.0], [1.0, 0.0]])
def test_other_divisors_are_refused(tmp_path: Path, divisors: list[float]) -> None:
    with pytest.raises(FetchFailed, match=r"rope_freqs\.weight"):
        converted_rope(tmp_path, with_tensor("rope_freqs.weight", divisors))


def test_two_scalings_at_once_are_refused(tmp_path: Path) -> None:
    def describe(writer: Writer) -> None:
        scaled(LINEAR, 2.0)(writer)
        with_tensor("rope_freqs.weight", llama3_divisors(HEAD_DIM, 1e4, 8.0))(writer)

    with pytest.raises(FetchFailed, match="together"):
        converted_rope(tmp_path, describe)


def test_gemma_3_scales_its_full_attention_only(tmp_path: Path) -> None:
    config = Gemma3TextConfig()
    path = write_gguf(tmp_path / "x.gguf", describe=scaled(LINEAR, 8.0))
    before = config.rope_parameters["sliding_attention"]
    set_rope_scaling(config, path, read_gguf_header(path))
    assert config.rope_parameters["sliding_attention"] == before
    assert config.rope_parameters["full_attention"]["rope_type"] == "linear"
    assert config.rope_parameters["full_attention"]["factor"] == 8.0


def test_phi_3s_two_lists_become_longrope(tmp_path: Path) -> None:
    def describe(writer: Writer) -> None:
        writer.add_rope_scaling_orig_ctx_len(4096)
        writer.add_rope_scaling_attn_factors(1.19)
        with_tensor("rope_factors_long.weight", [4.0] * (HEAD_DIM // 2))(writer)
        with_tensor("rope_factors_short.weight", [1.5] * (HEAD_DIM // 2))(writer)

    config = Phi3Config(hidden_size=HIDDEN, num_attention_heads=HEADS, max_position_embeddings=131072)
    path = write_gguf(tmp_path / "x.gguf", describe=describe)
    set_rope_scaling(config, path, read_gguf_header(path))
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["long_factor"], rope["short_factor"]) == (
        "longrope",
        [4.0] * (HEAD_DIM // 2),
        [1.5] * (HEAD_DIM // 2),
    )
    assert rope["attention_factor"] == pytest.approx(1.19)
    assert config.original_max_position_embeddings == 4096
    config.validate_rope()


def test_a_share_of_the_head_is_rotated_where_the_family_has_that(tmp_path: Path) -> None:
    config = Phi3Config(hidden_size=4 * 32, num_attention_heads=4, pad_token_id=0)
    path = write_gguf(tmp_path / "x.gguf")  # rotates HEAD_DIM values of each head
    set_rope_scaling(config, path, read_gguf_header(path))
    assert config.rope_parameters["partial_rotary_factor"] == HEAD_DIM / 32
