"""The real MiniLM through the product's own path, against plain transformers."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from inference_server.engine.embedding_assembly import build_embedding_engine
from inference_server.engine.embedding_engine import EmbeddingEngine
from inference_server.errors import InvalidRequest
from inference_server.types import EmbeddingRequest, EngineSpec, GenerationRequest, SamplingParams
from tests.demo import embedding_folder

Vector = tuple[float, ...]


@pytest.fixture(scope="module")
def folder() -> Path:
    return embedding_folder()


@pytest.fixture(scope="module")
def engine(folder: Path) -> EmbeddingEngine:
    spec = EngineSpec(
        model="minilm",
        folder=str(folder),
        device="cpu",
        dtype="float32",
        quantization="none",
        max_model_len=256,
        kv_cache_tokens=0,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        num_threads=2,
        task="embed",
    )
    return build_embedding_engine(spec, lambda stage, fraction: None)[0]


def some_inputs(count: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    rng = random.Random(seed)
    return tuple(
        (101, *(rng.randrange(1000, 30000) for _ in range(rng.randrange(1, 90))), 102) for _ in range(count)
    )


def run(engine: EmbeddingEngine, *requests: EmbeddingRequest) -> dict[tuple[str, int], Vector]:
    for request in requests:
        engine.submit(request)
    found = {}
    while engine.has_work:
        outcome = engine.step()
        assert not outcome.failures
        for vector in outcome.vectors:
            numbers = struct.unpack(f"<{len(vector.values) // 4}f", vector.values)
            found[vector.request_id, vector.index] = numbers
    return found


def plain(folder: Path, inputs: Sequence[Sequence[int]]) -> list[Vector]:
    """Each input alone: mean of the token states, at unit length."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for one in inputs:
            mean = model(input_ids=torch.tensor([list(one)])).last_hidden_state[0].mean(dim=0)
            vectors.append(tuple((mean / mean.norm()).tolist()))
    return vectors


def furthest(found: Sequence[Vector], expected: Sequence[Vector]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


@pytest.mark.model
def test_two_hundred_mixed_inputs_equal_plain_transformers(engine: EmbeddingEngine, folder: Path) -> None:
    inputs = some_inputs(200)
    found = run(engine, EmbeddingRequest(request_id="a", inputs=inputs))
    assert furthest([found["a", at] for at in range(200)], plain(folder, inputs)) < 1e-5


@pytest.mark.model
def test_order_and_company_change_nothing(engine: EmbeddingEngine) -> None:
    inputs = some_inputs(20, seed=1)
    alone = [run(engine, EmbeddingRequest(request_id="a", inputs=(one,)))["a", 0] for one in inputs]
    company = EmbeddingRequest(request_id="b", inputs=some_inputs(30, seed=2))
    found = run(engine, company, EmbeddingRequest(request_id="c", inputs=inputs[::-1]))
    assert furthest([found["c", at] for at in range(20)], alone[::-1]) < 1e-5


@pytest.mark.model
def test_fewer_dimensions_are_the_first_ones_at_unit_length(engine: EmbeddingEngine) -> None:
    inputs = some_inputs(1)
    whole = run(engine, EmbeddingRequest(request_id="a", inputs=inputs))["a", 0]
    cut = run(engine, EmbeddingRequest(request_id="a", inputs=inputs, dimensions=16))["a", 0]
    norm = math.sqrt(sum(number**2 for number in whole[:16]))
    assert furthest([cut], [tuple(number / norm for number in whole[:16])]) < 1e-6


@pytest.mark.model
def test_an_aborted_request_leaves_no_work(engine: EmbeddingEngine) -> None:
    engine.submit(EmbeddingRequest(request_id="a", inputs=some_inputs(200)))
    engine.step()
    assert engine.abort("a")
    assert not engine.has_work


@pytest.mark.model
def test_what_can_never_run_is_refused(engine: EmbeddingEngine) -> None:
    with pytest.raises(InvalidRequest, match="vocabulary"):
        engine.submit(EmbeddingRequest(request_id="a", inputs=((30522,),)))
    with pytest.raises(InvalidRequest, match="between 1 and the model's 384"):
        engine.submit(EmbeddingRequest(request_id="a", inputs=((1,),), dimensions=385))
    with pytest.raises(InvalidRequest, match="generates no text"):
        engine.submit(
            GenerationRequest(request_id="a", prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=1))
        )
