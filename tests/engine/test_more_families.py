"""The golden rule on further families: learned positions, latent attention, soft caps, sinks, experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPTNeoXConfig,
    GptOssConfig,
    OPTConfig,
    Phi3Config,
)

from tests.engine.reference import assert_golden, build_engine, reference_model
from tests.engine.test_golden_rule import generate, make_prompts
from tests.engine.tiny_models import VOCAB_SIZE

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "opt": lambda: OPTConfig(
        **{k: v for k, v in _COMMON.items() if k != "initializer_range"},
        init_std=0.15,
        ffn_dim=64,
        word_embed_proj_dim=32,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON, intermediate_size=64),
    "phi3": lambda: Phi3Config(**_COMMON, intermediate_size=64),
    "deepseek_v3": lambda: DeepseekV3Config(
        **_COMMON,
        intermediate_size=64,
        num_key_value_heads=4,
        n_routed_experts=4,
        moe_intermediate_size=16,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **_COMMON,
        intermediate_size=64,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=6,
    ),
    "gemma2": lambda: Gemma2Config(
        **_COMMON, intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=6
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_batches_and_chunks_equal_plain_generation(family: str, tmp_path: Path) -> None:
    torch.manual_seed(99)
    AutoModelForCausalLM.from_config(FAMILIES[family]()).float().eval().save_pretrained(tmp_path)
    reference = reference_model(tmp_path)
    prompts = make_prompts(8, seed=12)
    assert_golden(reference, prompts, generate(build_engine(tmp_path), prompts))
    engine = build_engine(tmp_path, max_num_batched_tokens=16)
    assert_golden(reference, prompts, generate(engine, prompts))
