"""The golden rule on the real SmolLM2, in float32: ten prompts, in one batch, in chunks and preempted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.demo import demo_folder
from tests.engine.reference import (
    assert_golden,
    build_engine,
    greedy_request,
    reference_model,
    run_to_end,
    tokens_of,
)

pytestmark = pytest.mark.model
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
    "The three primary colours are",
    "In 1969, the first humans",
    "Dear Sir or Madam,",
    "To make a good cup of tea, first",
    "1, 1, 2, 3, 5, 8,",
    "The quick brown fox jumps over the lazy dog. " * 8,
)
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_folder()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return reference_model(folder)


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({}, id="one batch"),
        pytest.param({"max_num_batched_tokens": 24}, id="chunks"),
        pytest.param({"kv_cache_tokens": 160, "max_model_len": 144}, id="preempted"),
    ],
)
def test_ten_prompts_equal_plain_generation(folder: Path, reference: Any, limits: dict[str, int]) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = {str(number): tokenizer.encode(text).ids for number, text in enumerate(PROMPTS)}
    engine = build_engine(folder, **limits)
    for request_id, prompt in prompts.items():
        engine.submit(greedy_request(request_id, prompt, MAX_TOKENS))
    outputs = {request_id: tokens_of(deltas) for request_id, deltas in run_to_end(engine).items()}
    assert_golden(reference, prompts, outputs)
