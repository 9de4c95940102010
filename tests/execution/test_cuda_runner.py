"""The CUDA runner, interpreted: eager, from graphs, and with two steps in flight, it says the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.execution.triton_here import require_triton

require_triton()

from inference_server.scheduling.batch import INVALID_TOKEN, Batch, ScheduledSequence  # noqa: E402
from inference_server.scheduling.sequence import Sequence  # noqa: E402
from inference_server.types import GenerationRequest, SamplingParams  # noqa: E402
from tests.engine.reference import assert_golden, reference_model  # noqa: E402
from tests.engine.tiny_models import VOCAB_SIZE, save_tiny_model  # noqa: E402
from tests.execution.device_runs import Run, build_runner, make_runner  # noqa: E402

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(request.param, tmp_path_factory.mktemp(f"tiny-{request.param}"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("tiny-llama"))


def make_sequence(name: str, prompt: list[int], max_tokens: int = 6, **sampling: Any) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **(GREEDY | sampling))
    request = GenerationRequest(request_id=name, prompt_token_ids=tuple(prompt), sampling=params)
    return Sequence(request, arrival=0, max_num_tokens=len(prompt) + max_tokens)


def prompts(count: int = 4, longest: int = 24) -> dict[str, list[int]]:
    rng = random.Random(3)
    return {
        f"r{n}": [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, longest))] for n in range(count)
    }


def mixed() -> list[Sequence]:
    """Greedy and random sequences with everything that a sampler knows."""
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_p": 0.9, "seed": 2, "repetition_penalty": 1.3},
        {"temperature": 1.3, "top_k": 9, "min_p": 0.02, "seed": 3, "presence_penalty": 0.7},
        {"frequency_penalty": 1.5, "repetition_penalty": 1.2, "min_tokens": 3},
    ]
    return [
        make_sequence(name, prompt, max_tokens=8, **setting)
        for (name, prompt), setting in zip(prompts(5).items(), settings, strict=True)
    ]


@pytest.mark.parametrize("chunk", [1000, 7])
def test_eager_steps_equal_plain_generation(folder: Path, chunk: int) -> None:
    sequences = [make_sequence(name, prompt) for name, prompt in prompts().items()]
    outputs = Run(make_runner(folder, with_graphs=False)).generate(sequences, chunk=chunk)
    assert_golden(reference_model(folder), prompts(), outputs)


def test_replayed_steps_with_two_in_flight_equal_plain_generation(folder: Path) -> None:
    sequences = [make_sequence(name, prompt, 4 + n) for n, (name, prompt) in enumerate(prompts().items())]
    outputs = Run(make_runner(folder, with_graphs=True), depth=2).generate(sequences)
    assert_golden(reference_model(folder), prompts(), outputs)


def test_fused_models_equal_plain_generation(folder: Path) -> None:
    sequences = [make_sequence(name, prompt, 4) for name, prompt in prompts(2).items()]
    outputs = Run(make_runner(folder, with_graphs=True, is_fused=True), depth=2).generate(sequences)
    assert_golden(reference_model(folder), prompts(2), outputs)


def test_sampled_tokens_are_the_same_with_two_steps_in_flight_and_from_graphs(llama: Path) -> None:
    plain = Run(make_runner(llama, with_graphs=False)).generate(mixed())
    assert Run(make_runner(llama, with_graphs=True), depth=2).generate(mixed()) == plain
    assert {len(output) for output in plain.values()} == {8}


def test_a_step_that_fails_leaves_no_trace_in_the_block_tables(llama: Path) -> None:
    runner = make_runner(llama, with_graphs=False)
    sequence = make_sequence("r", prompts()["r0"])
    run = Run(runner)
    lost = make_sequence("lost", [5] * 20)
    lost.block_ids = [3, 4]
    model, runner._model = runner._model, None
    with pytest.raises(TypeError):
        runner.launch(Batch(scheduled=(ScheduledSequence(lost, 0, 20, True),), preempted=()))
    runner._model = model
    outputs = run.generate([sequence])
    assert_golden(reference_model(llama), {"r": prompts()["r0"]}, outputs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_right", [0, 2, 4])
def test_drafts_are_accepted_while_they_are_what_would_have_been_sampled(
    llama: Path, temperature: float, num_right: int
) -> None:
    settings = {"temperature": temperature, "seed": 4, "repetition_penalty": 1.1}
    prompt = [5, 9, 30, 31, 32]
    plain = Run(make_runner(llama, with_graphs=False)).generate(
        [make_sequence("r", prompt, max_tokens=6, **settings)]
    )["r"]
    drafts = [token if n < num_right else (token + 1) % VOCAB_SIZE for n, token in enumerate(plain[:4])]
    sequence = make_sequence("r", prompt, max_tokens=6, **settings)
    sequence.block_ids = [2, 7]
    other = make_sequence("other", [8, 8, 9])
    other.block_ids = [1]
    runner = make_runner(llama, with_graphs=False)
    batch = Batch(
        scheduled=(
            ScheduledSequence(sequence, 0, len(prompt) + 4, True, draft_token_ids=tuple(drafts)),
            ScheduledSequence(other, 0, 3, True),
        ),
        preempted=(),
    )
    tokens, others = runner.launch(batch).tokens()
    assert list(tokens) == plain[: num_right + 1]
    assert len(others) == 1


def test_a_token_that_no_step_in_flight_chooses_cannot_be_carried(llama: Path) -> None:
    runner = make_runner(llama, with_graphs=False)
    sequence = make_sequence("r", [5, 6])
    sequence.block_ids = [0]
    batch = Batch(scheduled=(ScheduledSequence(sequence, 2, 1, True, carries=True),), preempted=())
    with pytest.raises(ValueError, match="carries"):
        runner.launch(batch)


def test_damage_stays_in_its_row_also_when_it_is_carried(llama: Path) -> None:
    runner = build_runner(llama)
    clean = Run(runner, depth=2).generate([make_sequence(n, p) for n, p in prompts(2).items()])
    with torch.no_grad():
        runner._model.get_input_embeddings().weight[1] = float("nan")  # tied: logit 1 is NaN for all …
        runner._model.lm_head.weight = torch.nn.Parameter(
            runner._model.lm_head.weight.detach().clone().nan_to_num(0.0)
        )
    damaged = make_sequence("damaged", [1, 1, 1])
    sequences = [make_sequence(n, p) for n, p in prompts(2).items()]
    outputs = Run(runner, depth=2).generate([*sequences, damaged])
    assert outputs.pop("damaged")[0] == INVALID_TOKEN
    assert outputs == clean
