"""Batched, ragged, chunked, prefix-cached and preempted generation equals plain `model.generate`."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference_server.engine.text_engine import TextEngine
from tests.engine.reference import (
    assert_golden,
    greedy_request,
    reference_model,
    run_to_end,
    tokens_of,
)
from tests.engine.reference import build_engine as engine_over
from tests.engine.tiny_models import VOCAB_SIZE

MAX_TOKENS = 12
BuildEngine = Callable[..., TextEngine]


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    return reference_model(tiny_model)


@pytest.fixture
def build_engine(kernels_and_model: tuple[str, Path]) -> BuildEngine:
    """An engine over the fixture's model, with the fixture's kernels."""
    kernels, folder = kernels_and_model
    return functools.partial(engine_over, folder, kernels=kernels)


def make_prompts(count: int, seed: int, longest: int = 40) -> dict[str, list[int]]:
    rng = random.Random(seed)
    return {
        f"r{number}": [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, longest))]
        for number in range(count)
    }


def generate(
    engine: Any, prompts: dict[str, list[int]], max_tokens: int = MAX_TOKENS
) -> dict[str, list[int]]:
    for request_id, prompt in prompts.items():
        engine.submit(greedy_request(request_id, prompt, max_tokens))
    return {request_id: tokens_of(deltas) for request_id, deltas in run_to_end(engine).items()}


def test_a_ragged_batch_equals_plain_generation(build_engine: BuildEngine, reference: Any) -> None:
    prompts = make_prompts(12, seed=1)
    assert_golden(reference, prompts, generate(build_engine(), prompts))


def test_prompts_cut_into_chunks_equal_plain_generation(build_engine: BuildEngine, reference: Any) -> None:
    prompts = make_prompts(8, seed=2)
    engine = build_engine(max_num_batched_tokens=16)
    assert_golden(reference, prompts, generate(engine, prompts))


def test_preempted_sequences_equal_plain_generation(build_engine: BuildEngine, reference: Any) -> None:
    prompts = make_prompts(8, seed=3)
    engine = build_engine(kv_cache_tokens=112, max_model_len=96)
    outputs = generate(engine, prompts, max_tokens=24)
    assert engine.step_stats().num_preemptions > 0
    assert_golden(reference, prompts, outputs)


def test_prompts_found_in_the_prefix_cache_equal_plain_generation(
    build_engine: BuildEngine, reference: Any
) -> None:
    engine = build_engine()
    shared = make_prompts(1, seed=4, longest=1)["r0"] + [7, 9, 11, 13] * 12
    prompts = {name: shared + tail for name, tail in make_prompts(6, seed=5, longest=9).items()}
    first = generate(engine, prompts)
    again = generate(engine, prompts)
    assert engine.step_stats().prefix_cache_hits > 0
    assert_golden(reference, prompts, first)
    assert_golden(reference, prompts, again)


def test_requests_that_arrive_while_others_run_equal_plain_generation(
    build_engine: BuildEngine, reference: Any
) -> None:
    engine = build_engine(max_num_seqs=4)
    prompts = make_prompts(10, seed=6)
    waiting = list(prompts.items())
    outputs: dict[str, list[int]] = {}
    while waiting or engine.has_work:
        if waiting:
            request_id, prompt = waiting.pop()
            engine.submit(greedy_request(request_id, prompt, MAX_TOKENS))
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        engine.check_integrity()
    assert_golden(reference, prompts, outputs)
