"""The golden rule: what the engine generates is what plain greedy `model.generate` generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from inference_server.engine.assembly import build_text_engine
from inference_server.engine.text_engine import TextEngine
from inference_server.types import EngineSpec, FinishReason, GenerationRequest, SamplingParams, TokenDelta

MAX_TIE_GAP = 1e-4
MAX_TIE_SHARE = 0.01


def reference_model(folder: Path) -> Any:
    """The plain model, with transformers' own attention, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def engine_spec(folder: Path, **changes: Any) -> EngineSpec:
    """A small float32 CPU engine; `changes` override its fields."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "folder": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "quantization": "none",
        "max_model_len": 256,
        "kv_cache_tokens": 4096,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
    }
    return EngineSpec(**(fields | changes))


def build_engine(folder: Path, **changes: Any) -> TextEngine:
    """An engine over `folder`."""
    engine, _ = build_text_engine(engine_spec(folder, **changes), lambda stage, fraction: None)
    return engine


def greedy_request(request_id: str, prompt: Sequence[int], max_tokens: int) -> GenerationRequest:
    """A greedy request that stops at nothing but its length."""
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
    )


def run_to_end(engine: TextEngine) -> dict[str, list[TokenDelta]]:
    """Step until nothing is left; every step leaves the scheduler whole."""
    deltas: dict[str, list[TokenDelta]] = {}
    while engine.has_work:
        outcome = engine.step()
        assert not outcome.failures, outcome.failures
        for delta in outcome.deltas:
            deltas.setdefault(delta.request_id, []).append(delta)
        engine.check_integrity()
    return deltas


def tokens_of(deltas: Sequence[TokenDelta]) -> list[int]:
    """All tokens of one request."""
    return [token for delta in deltas for token in delta.token_ids]


def finish_of(deltas: Sequence[TokenDelta]) -> FinishReason | None:
    """How one request ended."""
    return deltas[-1].finish_reason


@torch.inference_mode()
def generate_alone(model: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Plain greedy generation of one prompt."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        min_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@torch.inference_mode()
def count_ties(model: Any, prompt: Sequence[int], output: Sequence[int]) -> int:
    """Teacher-forced: how many of `output`'s tokens are not the reference's choice.

    Each of them must be within `MAX_TIE_GAP` of it, or the assertion fails.
    """
    ids = torch.tensor([[*prompt, *output]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    ties = 0
    for position, token in enumerate(output):
        best = int(logits[position].argmax())
        if token != best:
            gap = float(logits[position, best] - logits[position, token])
            assert gap < MAX_TIE_GAP, f"token {position} is {token}, the reference says {best} by {gap:.3g}"
            ties += 1
    return ties


def assert_golden(model: Any, prompts: Mapping[str, Sequence[int]], outputs: Mapping[str, list[int]]) -> None:
    """Every output equals plain greedy generation, but for true ties."""
    num_positions = num_ties = 0
    for request_id, prompt in prompts.items():
        output = outputs[request_id]
        num_positions += len(output)
        if output != generate_alone(model, prompt, len(output)):
            num_ties += count_ties(model, prompt, output)
    assert num_ties <= MAX_TIE_SHARE * num_positions, f"{num_ties} ties in {num_positions} positions"
