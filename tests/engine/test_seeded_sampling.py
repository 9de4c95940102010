"""A seed gives the same text whatever runs beside it, in float32 on the CPU."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from inference_server.engine.text_engine import TextEngine
from inference_server.types import GenerationRequest, SamplingParams
from tests.engine.reference import build_engine, greedy_request, run_to_end, tokens_of
from tests.engine.tiny_models import VOCAB_SIZE


def seeded_requests() -> dict[str, GenerationRequest]:
    """Requests with all kinds of settings and prompts."""
    rng = random.Random(11)
    requests = {}
    for number in range(8):
        sampling = SamplingParams(
            max_tokens=14,
            temperature=rng.choice([0.5, 1.0, 1.5]),
            top_p=rng.choice([1.0, 0.8]),
            top_k=rng.choice([0, 10]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            seed=number,
            ignore_eos=True,
        )
        prompt = tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 40)))
        name = f"r{number}"
        requests[name] = GenerationRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling)
    return requests


def run(engine: TextEngine, requests: list[GenerationRequest]) -> dict[str, list[int]]:
    for request in requests:
        engine.submit(request)
    return {name: tokens_of(deltas) for name, deltas in run_to_end(engine).items()}


@pytest.fixture(scope="module")
def alone(tiny_llama: Path) -> dict[str, list[int]]:
    """What each request gives when nothing else runs."""
    engine = build_engine(tiny_llama, enable_prefix_caching=False)
    outputs: dict[str, list[int]] = {}
    for request in seeded_requests().values():
        outputs |= run(engine, [request])
    return outputs


def test_together_is_as_alone(tiny_llama: Path, alone: dict[str, list[int]]) -> None:
    assert run(build_engine(tiny_llama), list(seeded_requests().values())) == alone


def test_chunked_and_preempted_is_as_alone(tiny_llama: Path, alone: dict[str, list[int]]) -> None:
    engine = build_engine(tiny_llama, kv_cache_tokens=96, max_model_len=64, max_num_batched_tokens=16)
    assert run(engine, list(reversed(seeded_requests().values()))) == alone
    assert engine.step_stats().num_preemptions > 0


def test_beside_others_and_after_others_is_as_alone(tiny_llama: Path, alone: dict[str, list[int]]) -> None:
    engine = build_engine(tiny_llama)
    rng = random.Random(3)
    for round_number in range(2):
        for number in range(6):
            prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 60))]
            engine.submit(greedy_request(f"other {round_number} {number}", prompt, rng.randint(1, 30)))
        for _ in range(3):
            engine.step()
        outputs = run(engine, list(seeded_requests().values()))
        assert {name: outputs[name] for name in alone} == alone


def test_another_seed_gives_another_text(tiny_llama: Path) -> None:
    engine = build_engine(tiny_llama)
    texts = set()
    for seed in range(4):
        sampling = SamplingParams(max_tokens=14, temperature=1.5, seed=seed, ignore_eos=True)
        request = GenerationRequest(request_id="r", prompt_token_ids=(5, 6, 7), sampling=sampling)
        texts.add(tuple(run(engine, [request])["r"]))
    assert len(texts) == 4
