"""The made-up requests that an engine's memory is measured with."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.engine.rehearsal import rehearsal_prompts, rehearse
from inference_server.errors import InternalError
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import FinishedStep
from inference_server.types import EngineSpec

SPEC = EngineSpec(
    model="m",
    folder="",
    device="cpu",
    dtype="float32",
    quantization="none",
    max_model_len=2048,
    kv_cache_tokens=16384,
    max_num_seqs=64,
    max_num_batched_tokens=512,
)


class RecordingRunner:
    """A `StepRunner` that notes how large each step is, and may fail at one of them."""

    max_in_flight = 1

    def __init__(self, fails_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []  # tokens, rows that sample
        self._fails_at = fails_at

    def launch(self, batch: Batch) -> FinishedStep:
        if len(self.steps) == self._fails_at:
            raise RuntimeError("scripted")
        rows: Sequence[object] = batch.sampling
        self.steps.append((batch.num_tokens, len(rows)))
        return FinishedStep([(1,) for _ in rows])

    def is_fatal(self, error: Exception) -> bool:
        return False


def test_one_step_has_all_the_tokens_and_one_has_every_sequence_sampling() -> None:
    runner = RecordingRunner()
    rehearse(runner, SPEC, vocab_size=100)
    assert runner.steps == [(512, 64), (64, 64)]


def test_a_small_kv_cache_makes_it_as_large_as_can_be() -> None:
    runner = RecordingRunner()
    rehearse(runner, msgspec.structs.replace(SPEC, kv_cache_tokens=160, max_model_len=160), vocab_size=100)
    assert runner.steps == [(5 * 8, 5), (5, 5)]


def test_a_step_that_fails_is_reported() -> None:
    with pytest.raises(InternalError, match="largest step"):
        rehearse(RecordingRunner(fails_at=1), SPEC, vocab_size=100)


@given(
    max_num_seqs=st.integers(1, 300),
    extra_tokens=st.integers(0, 4000),
    max_model_len=st.integers(1, 5000),
    kv_cache_tokens=st.integers(1, 40000),
)
def test_whatever_the_limits_the_prompts_can_be_served(
    max_num_seqs: int, extra_tokens: int, max_model_len: int, kv_cache_tokens: int
) -> None:
    spec = msgspec.structs.replace(
        SPEC,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + extra_tokens,
        max_model_len=max_model_len,
        kv_cache_tokens=kv_cache_tokens,
    )
    prompts = rehearsal_prompts(spec)
    assert len(prompts) <= max_num_seqs
    runner = RecordingRunner()
    rehearse(runner, spec, vocab_size=50)
    assert sum(tokens for tokens, _ in runner.steps) == sum(length + 1 for length in prompts)
