"""Guesses change nothing: with speculation, every family generates what plain `model.generate` generates."""

from __future__ import annotations

import random
from pathlib import Path

from inference_server.types import GenerationRequest, SamplingParams, Speculation
from tests.engine.reference import (
    assert_golden,
    build_engine,
    greedy_request,
    reference_model,
    run_to_end,
    tokens_of,
)
from tests.engine.tiny_models import VOCAB_SIZE

EAGER = Speculation(max_draft_tokens=6, max_drafting_seqs=8)


def repetitive_prompts(count: int) -> dict[str, list[int]]:
    """Prompts that end where an earlier piece went on, so that there is something to guess."""
    rng = random.Random(3)
    piece = [rng.randrange(3, VOCAB_SIZE) for _ in range(6)]
    return {str(number): [*piece * 3, 3 + number, *piece[:3]] for number in range(count)}


def test_greedy_output_with_guesses_equals_plain_generation(tiny_model: Path) -> None:
    engine = build_engine(tiny_model, speculation=EAGER)
    prompts = repetitive_prompts(5)
    for name, prompt in prompts.items():
        engine.submit(greedy_request(name, prompt, 40))
    outputs = {name: tokens_of(deltas) for name, deltas in run_to_end(engine).items()}
    stats = engine.step_stats()
    assert stats.num_draft_tokens >= stats.num_accepted_tokens > 0
    assert_golden(reference_model(tiny_model), prompts, outputs)


def test_sampled_output_with_guesses_is_what_it_is_without(tiny_llama: Path) -> None:
    outputs = []
    for speculation in (None, EAGER):
        engine = build_engine(tiny_llama, speculation=speculation)
        for number, (name, prompt) in enumerate(repetitive_prompts(5).items()):
            sampling = SamplingParams(
                max_tokens=40, temperature=0.3 * number, top_p=0.9, seed=number, ignore_eos=True
            )
            request = GenerationRequest(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling)
            engine.submit(request)
        outputs.append({name: tokens_of(deltas) for name, deltas in run_to_end(engine).items()})
    assert outputs[0] == outputs[1]
