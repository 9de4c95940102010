"""A long request does not change the positions of its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inference_server.loading.rope import freeze_batch_dependent_rope
from tests.engine.reference import build_engine, greedy_request, run_to_end, tokens_of
from tests.engine.test_golden_rule import make_prompts

ORIGINAL_LEN, MAX_MODEL_LEN = 32, 256
ROPE: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "factor": 8.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + 0.7 * step for step in range(8)],
        "original_max_position_embeddings": ORIGINAL_LEN,
    },
}


def make_model(rope_type: str) -> Any:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=ORIGINAL_LEN if rope_type == "dynamic" else MAX_MODEL_LEN,
        initializer_range=0.15,
        rope_parameters={"rope_theta": 10000.0, **ROPE.get(rope_type, {"rope_type": rope_type})},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).float().eval()


@torch.inference_mode()
def logits_at(model: Any, start: int) -> torch.Tensor:
    """Logits of ten tokens at positions from `start` on."""
    ids = torch.arange(3, 13)[None]
    positions = torch.arange(start, start + 10)[None]
    return model(input_ids=ids, position_ids=positions, use_cache=False).logits


@pytest.mark.parametrize("rope_type", sorted(ROPE))
def test_alone_and_beside_a_long_request_are_the_same(rope_type: str, tmp_path: Path) -> None:
    make_model(rope_type).save_pretrained(tmp_path)
    prompts = make_prompts(5, seed=4, longest=20)
    engine = build_engine(tmp_path, enable_prefix_caching=False)
    alone = {}
    for name, prompt in prompts.items():
        engine.submit(greedy_request(name, prompt, 12))
        alone[name] = tokens_of(run_to_end(engine)[name])
    engine.submit(greedy_request("long", list(range(3, 123)) * 2, 12))
    for name, prompt in prompts.items():
        engine.submit(greedy_request(name, prompt, 12))
    together = {name: tokens_of(deltas) for name, deltas in run_to_end(engine).items()}
    assert {name: together[name] for name in prompts} == alone


@pytest.mark.parametrize("rope_type", sorted(ROPE))
def test_frequencies_are_those_of_the_engines_context_length_and_stay(rope_type: str) -> None:
    model = make_model(rope_type)
    if rope_type == "longrope":  # chooses by length only: below and above the original one
        expected = make_model(rope_type)
        logits_at(expected, MAX_MODEL_LEN - 10)
        long_frequencies = expected.model.rotary_emb.inv_freq.clone()
    else:
        base = 10000.0 * (4.0 * MAX_MODEL_LEN / ORIGINAL_LEN - 3.0) ** (16 / 14)
        long_frequencies = base ** (-torch.arange(0, 16, 2) / 16)
    assert freeze_batch_dependent_rope(model, MAX_MODEL_LEN) == 1
    for start in (0, MAX_MODEL_LEN - 10, 0):
        logits_at(model, start)
        torch.testing.assert_close(model.model.rotary_emb.inv_freq, long_frequencies)


@pytest.mark.parametrize("rope_type", sorted(ROPE))
def test_positions_that_need_the_whole_context_are_as_transformers_computes_them(rope_type: str) -> None:
    frozen, plain = make_model(rope_type), make_model(rope_type)
    freeze_batch_dependent_rope(frozen, MAX_MODEL_LEN)
    start = MAX_MODEL_LEN - 10
    torch.testing.assert_close(logits_at(frozen, start), logits_at(plain, start), rtol=1e-4, atol=1e-4)


def test_other_kinds_are_left_alone() -> None:
    model = make_model("default")
    before = model.model.rotary_emb.inv_freq.clone()
    assert freeze_batch_dependent_rope(model, MAX_MODEL_LEN) == 0
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_a_context_within_the_original_length_keeps_the_original_frequencies() -> None:
    model = make_model("dynamic")
    before = model.model.rotary_emb.inv_freq.clone()
    assert freeze_batch_dependent_rope(model, ORIGINAL_LEN) == 1
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, before)
