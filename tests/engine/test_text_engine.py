"""What a step's failure costs: its own batch, and never more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq

import pytest

from inference_server.engine.text_engine import INVALID_TOKEN, TextEngine
from inference_server.errors import ContextTooLong, InvalidRequest
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.scheduler import Scheduler, SchedulerConfig
from inference_server.types import FinishReason, GenerationRequest, SamplingParams
from tests.engine.reference import greedy_request, run_to_end, tokens_of

VOCAB_SIZE = 100
EOS = 2


class FakeRunner:
    """Answers each sequence with its number of tokens, unless a step has another script."""

    def __init__(self) -> None:
        self.scripts: dict[int, Callable[[Batch], Seq[int]]] = {}
        self.batches: list[list[str]] = []
        self.fatal: type[Exception] | None = None

    def execute(self, batch: Batch) -> Seq[int]:
        self.batches.append([item.sequence.request_id for item in batch.scheduled])
        script = self.scripts.pop(len(self.batches), None)
        return script(batch) if script else [item.sequence.num_tokens for item in batch.sampling]

    def is_fatal(self, error: Exception) -> bool:
        return self.fatal is not None and isinstance(error, self.fatal)


def make_engine(runner: FakeRunner, **changes: int) -> TextEngine:
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64, "num_blocks": 32}
    config = SchedulerConfig(**(limits | changes), eos_token_ids=frozenset({EOS}))  # type: ignore[arg-type]
    return TextEngine(Scheduler(config), runner, VOCAB_SIZE)


def broken(error: Exception) -> Callable[[Batch], Seq[int]]:
    def raise_it(batch: Batch) -> Seq[int]:
        raise error

    return raise_it


def test_a_failing_step_fails_its_batch_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    engine = make_engine(runner, max_num_seqs=2)
    for name in ("a", "b", "waiting"):
        engine.submit(greedy_request(name, [5] * 10, 4))
    runner.scripts[2] = broken(ValueError("a secret of the prompt"))
    engine.step()
    with caplog.at_level(logging.CRITICAL, logger="inference_server.engine.text_engine"):
        outcome = engine.step()
    assert {failure.request_id for failure in outcome.failures} == {"a", "b"}
    assert {failure.code for failure in outcome.failures} == {"internal_error"}
    assert all("ValueError" in f.message and "secret" not in f.message for f in outcome.failures)
    assert outcome.deltas == ()
    assert outcome.fatal is None
    engine.check_integrity()
    deltas = run_to_end(engine)
    assert list(deltas) == ["waiting"]
    assert tokens_of(deltas["waiting"]) == [10, 11, 12, 13]
    assert engine.step_stats().kv_cache_usage == 0.0


def test_a_step_that_answers_too_little_is_a_bug_and_not_swallowed() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    engine.submit(greedy_request("a", [5], 4))
    runner.scripts[1] = lambda batch: []
    with pytest.raises(ValueError):
        engine.step()


def test_a_broken_device_is_fatal_and_fails_its_batch_too() -> None:
    runner = FakeRunner()
    runner.fatal = OSError
    engine = make_engine(runner)
    engine.submit(greedy_request("a", [5], 4))
    runner.scripts[1] = broken(OSError("lost"))
    outcome = engine.step()
    assert outcome.fatal == "the device failed: OSError"
    assert [failure.request_id for failure in outcome.failures] == ["a"]


def test_an_invalid_token_fails_its_request_alone() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    for name in ("a", "b", "c"):
        engine.submit(greedy_request(name, [5] * 4, 3))
    runner.scripts[2] = lambda batch: [7, INVALID_TOKEN, 8]
    first, second = engine.step(), engine.step()
    assert len(first.deltas) == 3
    assert [failure.request_id for failure in second.failures] == ["b"]
    assert "not finite" in second.failures[0].message
    assert [(delta.request_id, delta.token_ids) for delta in second.deltas] == [("a", (7,)), ("c", (8,))]
    engine.check_integrity()
    assert set(run_to_end(engine)) == {"a", "c"}


@pytest.mark.parametrize("bad", [VOCAB_SIZE, 10**9, -1])
def test_token_ids_beyond_the_vocabulary_are_refused_before_they_reach_a_batch(bad: int) -> None:
    engine = make_engine(FakeRunner())
    with pytest.raises(InvalidRequest):
        engine.submit(greedy_request("a", [5, bad, 5], 4))
    assert not engine.has_work
    engine.submit(greedy_request("b", [0, VOCAB_SIZE - 1], 4))
    assert engine.has_work


def test_requests_that_can_never_run_are_refused() -> None:
    engine = make_engine(FakeRunner())
    with pytest.raises(InvalidRequest):
        engine.submit(greedy_request("empty", [], 4))
    with pytest.raises(ContextTooLong):
        engine.submit(greedy_request("long", [1] * 64, 4))
    assert not engine.has_work


def test_an_end_of_sequence_token_stops_and_is_delivered() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    request = GenerationRequest(
        request_id="a", prompt_token_ids=(5,), sampling=SamplingParams(max_tokens=9, temperature=0.0)
    )
    engine.submit(request)
    runner.scripts[2] = lambda batch: [EOS]
    deltas = run_to_end(engine)["a"]
    assert tokens_of(deltas) == [1, EOS]
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_an_aborted_request_gets_nothing_more() -> None:
    engine = make_engine(FakeRunner())
    engine.submit(greedy_request("a", [5], 9))
    engine.submit(greedy_request("b", [5], 3))
    engine.step()
    assert engine.abort("a")
    assert not engine.abort("a")
    assert not engine.abort("never heard of")
    engine.check_integrity()
    assert set(run_to_end(engine)) == {"b"}


def test_a_step_reports_what_it_computed() -> None:
    engine = make_engine(FakeRunner(), max_num_seqs=2)
    for name in ("a", "b", "c"):
        engine.submit(greedy_request(name, [5] * 10, 4))
    stats = engine.step().stats
    assert (stats.num_running, stats.num_waiting) == (2, 1)
    assert (stats.step_num_seqs, stats.step_num_tokens) == (2, 20)
    assert stats.step_seconds > 0
    assert engine.step().stats.step_num_tokens == 2
