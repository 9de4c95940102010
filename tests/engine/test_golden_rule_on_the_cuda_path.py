"""The golden rule for the CUDA runner under the real engine: steps in flight, graphs, preemption, guesses.

Kernels run in Triton's interpreter; see `tests/execution/device_runs.py`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.execution.triton_here import require_triton

require_triton()

from inference_server.engine.scheduling import build_scheduler  # noqa: E402
from inference_server.engine.text_engine import TextEngine  # noqa: E402
from inference_server.types import GenerationRequest, SamplingParams  # noqa: E402
from tests.engine.reference import (  # noqa: E402
    assert_golden,
    build_engine,
    engine_spec,
    greedy_request,
    reference_model,
    run_to_end,
    tokens_of,
)
from tests.engine.test_speculation_golden import EAGER, repetitive_prompts  # noqa: E402
from tests.engine.tiny_models import VOCAB_SIZE, save_tiny_model  # noqa: E402
from tests.execution.device_runs import MAX_NUM_SEQS, make_runner  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("tiny-llama-cuda"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return reference_model(folder)


def engine_over(folder: Path, **changes: Any) -> TextEngine:
    """The real scheduler and loop over an interpreted runner."""
    fields: dict[str, Any] = {
        "max_model_len": 64,
        "kv_cache_tokens": 512,
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": 64,
        # The runner is shared with other tests, whose blocks hold other things.
        "enable_prefix_caching": False,
    }
    spec = engine_spec(folder, **(fields | changes))
    return TextEngine(build_scheduler(spec, (2,)), make_runner(folder, with_graphs=True), VOCAB_SIZE)


def prompts(count: int, longest: int = 24) -> dict[str, list[int]]:
    rng = random.Random(7)
    return {
        f"r{n}": [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, longest))] for n in range(count)
    }


def generate(engine: TextEngine, asked: dict[str, list[int]], max_tokens: int) -> dict[str, list[int]]:
    for name, prompt in asked.items():
        engine.submit(greedy_request(name, prompt, max_tokens))
    return {name: tokens_of(deltas) for name, deltas in run_to_end(engine).items()}


def test_waiting_and_running_requests_equal_plain_generation(folder: Path, reference: Any) -> None:
    asked = prompts(MAX_NUM_SEQS + 2)
    assert_golden(reference, asked, generate(engine_over(folder), asked, 5))


def test_chunked_and_preempted_requests_equal_plain_generation(folder: Path, reference: Any) -> None:
    asked = prompts(6, longest=12)
    engine = engine_over(folder, kv_cache_tokens=112, max_num_batched_tokens=16)
    outputs = generate(engine, asked, 30)
    assert engine.step_stats().num_preemptions > 0
    assert_golden(reference, asked, outputs)


def test_prompts_found_in_the_prefix_cache_equal_plain_generation(folder: Path, reference: Any) -> None:
    shared = [7, 9, 11, 13] * 8
    asked = {name: shared + tail for name, tail in prompts(3, longest=5).items()}
    engine = engine_over(folder, enable_prefix_caching=True)
    assert_golden(reference, asked, generate(engine, asked, 3))
    assert_golden(reference, asked, generate(engine, asked, 3))
    assert engine.step_stats().prefix_cache_hits > 0


def test_guesses_are_exact(folder: Path, reference: Any) -> None:
    asked = repetitive_prompts(4)
    engine = engine_over(folder, speculation=EAGER)
    outputs = generate(engine, asked, 40)
    stats = engine.step_stats()
    assert stats.num_draft_tokens >= stats.num_accepted_tokens > 0
    assert_golden(reference, asked, outputs)


def test_drawn_tokens_are_those_of_the_general_runner(folder: Path) -> None:
    outputs = []
    for engine in (engine_over(folder), build_engine(folder)):
        for number, (name, prompt) in enumerate(prompts(4).items()):
            sampling = SamplingParams(
                max_tokens=8,
                temperature=0.4 + 0.3 * number,
                top_p=0.9,
                top_k=30,
                repetition_penalty=1.2,
                seed=number,
                ignore_eos=True,
            )
            engine.submit(
                GenerationRequest(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling)
            )
        outputs.append({name: tokens_of(deltas) for name, deltas in run_to_end(engine).items()})
    assert outputs[0] == outputs[1]


def test_requests_aborted_in_flight_disturb_nobody(folder: Path, reference: Any) -> None:
    engine = engine_over(folder)
    asked = prompts(4)
    for name, prompt in asked.items():
        engine.submit(greedy_request(name, prompt, 8))
    outputs: dict[str, list[int]] = {}
    num_steps = 0
    while engine.has_work:
        for delta in engine.step().deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        num_steps += 1
        if num_steps == 3:
            assert engine.abort("r1")
        engine.check_integrity()
    asked.pop("r1")
    outputs.pop("r1", None)
    assert {len(output) for output in outputs.values()} == {8}
    assert_golden(reference, asked, outputs)
