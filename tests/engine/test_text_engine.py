"""What a step's failure costs: its own batch, and never more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq

import pytest

from inference_server.engine.contract import Sleeper, StepRunner
from inference_server.engine.text_engine import INVALID_TOKEN, TextEngine
from inference_server.errors import ContextTooLong, InternalError, InvalidRequest, SleepUnsupported
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.scheduler import Scheduler
from inference_server.types import FinishReason, GenerationRequest, MemoryReport, SamplingParams
from tests.engine.reference import greedy_request, run_to_end, tokens_of

VOCAB_SIZE = 100
EOS = 2
Script = Callable[[Batch], Seq[int]]


class FakeRunner:
    """Answers each sequence with its number of tokens, unless a step has another script.

    `launch_scripts` take effect when a step is launched, `scripts` when its tokens are asked for.
    """

    def __init__(self, max_in_flight: int = 1) -> None:
        self.max_in_flight = max_in_flight
        self.launch_scripts: dict[int, Script] = {}
        self.scripts: dict[int, Script] = {}
        self.batches: list[list[str]] = []
        self.log: list[str] = []
        self.fatal: type[Exception] | None = None

    def launch(self, batch: Batch) -> FakeStep:
        self.batches.append([item.sequence.request_id for item in batch.scheduled])
        number = len(self.batches)
        self.log.append(f"launch {number}")
        if number in self.launch_scripts:
            self.launch_scripts[number](batch)
        return FakeStep(self, number, batch)

    def is_fatal(self, error: Exception) -> bool:
        return self.fatal is not None and isinstance(error, self.fatal)


class FakeStep:
    def __init__(self, runner: FakeRunner, number: int, batch: Batch) -> None:
        self._runner = runner
        self._number = number
        self._batch = batch
        self._answer = [item.sample_position for item in batch.sampling]

    def scores(self) -> None:
        return None

    def tokens(self) -> Seq[Seq[int]]:
        self._runner.log.append(f"collect {self._number}")
        script = self._runner.scripts.get(self._number)
        return [(token,) for token in (script(self._batch) if script else self._answer)]


class FakeSleeper:
    """Notes what is asked of it; fails with `error` while there is one."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.error: Exception | None = None

    def sleep(self) -> None:
        self._note("sleep")

    def wake(self) -> None:
        self._note("wake")

    def memory(self) -> MemoryReport:
        return MemoryReport(weights_bytes=len(self.log), kv_cache_bytes=0, workspace_bytes=0, rss_bytes=0)

    def _note(self, what: str) -> None:
        if self.error is not None:
            raise self.error
        self.log.append(what)


def make_engine(runner: StepRunner, sleeper: Sleeper | None = None, **changes: int) -> TextEngine:
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64, "num_blocks": 32}
    config = SchedulerConfig(**(limits | changes), eos_token_ids=frozenset({EOS}))  # type: ignore[arg-type]
    scheduler = Scheduler(config)
    if sleeper is None:
        return TextEngine(scheduler, runner, VOCAB_SIZE)
    return TextEngine(scheduler, runner, VOCAB_SIZE, sleeper=sleeper)


def broken(error: Exception) -> Script:
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


def test_a_step_without_memory_says_so_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    engine.submit(greedy_request("a", [5], 4))
    runner.scripts[1] = broken(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 TB"))
    with caplog.at_level(logging.CRITICAL, logger="inference_server.engine.text_engine"):
        outcome = engine.step()
    assert [(failed.request_id, failed.code) for failed in outcome.failures] == [("a", "insufficient_memory")]
    assert "1 TB" not in outcome.failures[0].message
    assert outcome.fatal is None
    engine.submit(greedy_request("b", [5], 1))
    assert tokens_of(run_to_end(engine)["b"]) == [1]
    engine.check_integrity()


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


def test_the_next_step_is_launched_before_the_tokens_of_the_last_are_asked_for() -> None:
    runner = FakeRunner(max_in_flight=2)
    engine = make_engine(runner)
    engine.submit(greedy_request("a", [5] * 3, 4))
    deltas = run_to_end(engine)["a"]
    assert tokens_of(deltas) == [3, 4, 5, 6]
    assert runner.log == [
        *("launch 1", "launch 2", "collect 1", "launch 3", "collect 2", "launch 4", "collect 3", "collect 4")
    ]


def test_a_token_after_the_end_is_computed_in_vain_and_not_delivered() -> None:
    runner = FakeRunner(max_in_flight=2)
    engine = make_engine(runner)
    sampling = SamplingParams(max_tokens=9, temperature=0.0)
    engine.submit(GenerationRequest(request_id="a", prompt_token_ids=(5,), sampling=sampling))
    runner.scripts[2] = lambda batch: [EOS]
    deltas = run_to_end(engine)["a"]
    assert tokens_of(deltas) == [1, EOS]
    assert len(runner.batches) == 3
    assert not engine.has_work
    assert engine.step_stats().kv_cache_usage == 0.0


@pytest.mark.parametrize("at_launch", [True, False])
def test_a_failing_step_fails_in_its_turn_and_takes_along_what_depends_on_it(
    at_launch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    runner = FakeRunner(max_in_flight=2)
    engine = make_engine(runner, max_num_seqs=2)
    (runner.launch_scripts if at_launch else runner.scripts)[3] = broken(ValueError("no"))
    for name in ("a", "b", "waiting"):
        engine.submit(greedy_request(name, [5] * 10, 9))
    outcomes = []
    with caplog.at_level(logging.CRITICAL, logger="inference_server.engine.text_engine"):
        while not any(outcome.failures for outcome in outcomes):
            outcomes.append(engine.step())
            engine.check_integrity()
    assert [len(outcome.deltas) for outcome in outcomes] == [2, 2, 0]
    assert [failure.request_id for failure in outcomes[-1].failures] == ["a", "b"]
    deltas = run_to_end(engine)
    assert list(deltas) == ["waiting"]
    assert tokens_of(deltas["waiting"]) == list(range(10, 19))
    assert engine.step_stats().kv_cache_usage == 0.0


def test_a_request_that_comes_while_a_step_is_in_flight_joins_the_next() -> None:
    runner = FakeRunner(max_in_flight=2)
    engine = make_engine(runner)
    engine.submit(greedy_request("a", [5], 9))
    engine.step()
    engine.submit(greedy_request("b", [5], 3))
    run_to_end(engine)
    assert runner.batches[:4] == [["a"], ["a"], ["a", "b"], ["a", "b"]]


def test_an_invalid_token_in_flight_fails_its_request_once() -> None:
    runner = FakeRunner(max_in_flight=2)
    engine = make_engine(runner)
    for name in ("a", "b"):
        engine.submit(greedy_request(name, [5] * 4, 5))
    runner.scripts[2] = lambda batch: [7, INVALID_TOKEN]
    runner.scripts[3] = lambda batch: [8, INVALID_TOKEN]
    outcomes = [engine.step() for _ in range(3)]
    assert [len(outcome.failures) for outcome in outcomes] == [0, 1, 0]
    assert [len(outcome.deltas) for outcome in outcomes] == [2, 1, 1]
    assert set(run_to_end(engine)) == {"a"}


def test_an_id_that_comes_back_while_its_first_owner_is_in_flight_is_another_request() -> None:
    runner = FakeRunner(max_in_flight=2)
    engine = make_engine(runner)
    engine.submit(greedy_request("a", [5] * 4, 9))
    engine.step()
    engine.abort("a")
    engine.submit(greedy_request("a", [5] * 7, 3))
    runner.scripts[2] = lambda batch: [INVALID_TOKEN]
    assert tokens_of(run_to_end(engine)["a"]) == [7, 8, 9]


def test_a_step_without_work_is_nothing() -> None:
    outcome = make_engine(FakeRunner()).step()
    assert (outcome.deltas, outcome.failures, outcome.fatal) == ((), (), None)


# ---------------------------------------------------------------- sleep


def test_an_engine_sleeps_and_wakes_once_however_often_it_is_told() -> None:
    sleeper = FakeSleeper()
    engine = make_engine(FakeRunner(), sleeper)
    engine.wake()
    engine.sleep()
    assert engine.sleep().weights_bytes == 1
    assert engine.is_asleep
    engine.wake()
    assert engine.wake().weights_bytes == 2
    assert sleeper.log == ["sleep", "wake"]
    assert not engine.is_asleep


def test_an_engine_with_requests_does_not_sleep_and_goes_on() -> None:
    sleeper = FakeSleeper()
    engine = make_engine(FakeRunner(), sleeper)
    engine.submit(greedy_request("a", [5], 4))
    with pytest.raises(SleepUnsupported, match="while requests run"):
        engine.sleep()
    engine.step()
    with pytest.raises(SleepUnsupported, match="while requests run"):
        engine.sleep()
    assert sleeper.log == []
    assert len(tokens_of(run_to_end(engine)["a"])) == 3


def test_steps_in_flight_of_aborted_requests_end_before_the_engine_sleeps() -> None:
    runner, sleeper = FakeRunner(max_in_flight=2), FakeSleeper()
    engine = make_engine(runner, sleeper)
    engine.submit(greedy_request("a", [5], 8))
    engine.step()
    engine.abort("a")
    engine.sleep()
    assert runner.log[-1].startswith("collect")
    assert runner.log.count("collect 2") == 1
    assert not engine.has_work
    engine.check_integrity()


def test_a_prefix_from_before_a_sleep_is_computed_again() -> None:
    engine = make_engine(FakeRunner(), FakeSleeper())
    prompt = [7] * 40
    for request_id in ("cold", "cached"):
        engine.submit(greedy_request(request_id, prompt, 1))
        run_to_end(engine)
    assert engine.step_stats().prefix_cache_hits > 0
    hits = engine.step_stats().prefix_cache_hits
    engine.sleep()
    engine.wake()
    engine.submit(greedy_request("after", prompt, 1))
    run_to_end(engine)
    assert engine.step_stats().prefix_cache_hits == hits


def test_a_request_to_a_sleeping_engine_is_refused() -> None:
    engine = make_engine(FakeRunner(), FakeSleeper())
    engine.sleep()
    with pytest.raises(InternalError, match="asleep"):
        engine.submit(greedy_request("a", [5], 4))
    assert not engine.has_work


def test_a_sleep_or_wake_that_fails_leaves_the_engine_as_it_was() -> None:
    sleeper = FakeSleeper()
    engine = make_engine(FakeRunner(), sleeper)
    sleeper.error = MemoryError()
    with pytest.raises(MemoryError):
        engine.sleep()
    engine.submit(greedy_request("a", [5], 4))
    run_to_end(engine)
    sleeper.error = None
    engine.sleep()
    sleeper.error = MemoryError()
    with pytest.raises(MemoryError):
        engine.wake()
    assert engine.is_asleep
    sleeper.error = None
    engine.wake()
    assert not engine.is_asleep


def test_an_engine_without_a_second_place_for_its_weights_says_that_it_cannot_sleep() -> None:
    engine = make_engine(FakeRunner())
    assert engine.why_not_sleep
    with pytest.raises(SleepUnsupported, match=engine.why_not_sleep):
        engine.sleep()
    with pytest.raises(SleepUnsupported):
        engine.wake()
