"""What the kernels go by is what the layout was made of, or the load is refused: they check no bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from inference_server.checkpoints.native import native_shape
from inference_server.errors import ModelLoadFailed
from inference_server.execution.native.architecture import check_layout, read_architecture, rotary_table

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 100,
}
CONFIGS = [kind(**SIZES) for kind in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Gemma3TextConfig)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_config_json_and_transformers_agree_for_every_family(config: PretrainedConfig) -> None:
    check_layout(read_architecture(config), native_shape(config.to_dict()))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"intermediate_size": 32}, "intermediate_size"),
        ({"num_kv_heads": 4}, "num_key_value_heads"),
        ({"num_layers": 3}, "num_hidden_layers"),
        ({"head_dim": 64}, "head_dim"),
        ({"vocab_size": 99}, "vocab_size"),
        ({"tied": True}, "tie_word_embeddings"),
        ({"qkv_bias": True}, "bias"),
    ],
)
def test_a_layout_of_other_sizes_is_refused_by_name(change: dict[str, Any], name: str) -> None:
    shape = replace(native_shape(CONFIGS[0].to_dict()), **change)
    with pytest.raises(ModelLoadFailed, match=name):
        check_layout(read_architecture(CONFIGS[0]), shape)


def test_a_table_of_other_angles_than_the_heads_need_is_refused() -> None:
    assert rotary_table(CONFIGS[0], "", 16, 32).shape == (16, 2, 16)
    with pytest.raises(ModelLoadFailed, match="32 per head of 64"):
        rotary_table(CONFIGS[0], "", 16, 64)
