"""Which real architectures are served, and what the rest are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, Lfm2Config, MambaConfig

from inference_server.engine.assembly import build_text_engine
from inference_server.errors import ModelLoadFailed
from inference_server.types import BLOCK_SIZE
from tests.engine.reference import build_engine, engine_spec

_COMMON: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
REFUSED = {
    "bloom": (lambda: BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), "attention interface"),
    "classic falcon": (
        lambda: FalconConfig(**_COMMON, num_attention_heads=4, alibi=True, new_decoder_architecture=False),
        "attention interface",
    ),
    "mamba": (lambda: MambaConfig(**_COMMON, state_size=4), "not paged"),
    "a hybrid": (
        lambda: Lfm2Config(
            **_COMMON,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        ),
        "of type conv",
    ),
}


@pytest.mark.parametrize(("make_config", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_an_architecture_that_cannot_be_served_is_refused_with_the_reason(
    make_config: Any, reason: str, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_config(make_config()).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadFailed, match=reason):
        build_engine(tmp_path)


def test_facts_and_progress_are_reported(tiny_llama: Path) -> None:
    stages: list[str] = []
    spec = engine_spec(tiny_llama, kv_cache_tokens=100)
    _, facts = build_text_engine(spec, lambda stage, fraction: stages.append(stage))
    assert stages == ["load", "check"]
    assert facts.dtype == "float32"
    assert facts.vocab_size == 128
    assert facts.kv_cache_tokens == 112  # whole blocks
    num_blocks = 112 // BLOCK_SIZE + 1
    assert facts.memory.kv_cache_bytes == 3 * num_blocks * BLOCK_SIZE * 2 * 2 * 16 * 4
    assert facts.memory.weights_bytes > 0
    assert facts.memory.rss_bytes > 0
