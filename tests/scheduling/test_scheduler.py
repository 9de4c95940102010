"""The scheduler's rules, one by one, on cases small enough to follow by hand."""

from __future__ import annotations

import pytest

from inference_server.errors import ContextTooLong, InternalError, InvalidRequest
from inference_server.scheduling.batch import Batch
from inference_server.types import FinishReason
from tests.scheduling.simulation import EOS, Simulation, expected_output, make_config, make_request


def scheduled_counts(simulation: Simulation) -> dict[str, int]:
    """Tokens per request in a freshly scheduled step, which is then computed and committed."""
    batch = simulation.schedule()
    simulation.commit(batch, simulation.model.execute(batch))
    return {item.sequence.request_id: item.num_new_tokens for item in batch.scheduled}


def test_one_request_gives_the_same_tokens_as_the_plain_loop() -> None:
    simulation = Simulation(make_config())
    request = make_request("a", range(1, 20), max_tokens=10)
    simulation.add(request)
    simulation.run()
    simulation.assert_output(request)
    assert simulation.scheduler.stats().kv_cache_usage == 0.0


def test_a_long_prompt_is_computed_in_chunks_of_the_budget_and_samples_at_its_end_only() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    simulation.add(make_request("a", range(19)))
    batch = simulation.schedule()
    assert [(item.start, item.num_new_tokens, item.samples) for item in batch.scheduled] == [(0, 8, False)]
    assert simulation.commit(batch, simulation.model.execute(batch)) == []
    assert scheduled_counts(simulation) == {"a": 8}
    batch = simulation.schedule()
    assert [(item.start, item.num_new_tokens, item.samples) for item in batch.scheduled] == [(16, 3, True)]


def test_decoding_goes_on_while_another_prompt_is_computed() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    simulation.add(make_request("a", range(8), max_tokens=10))
    scheduled_counts(simulation)
    simulation.add(make_request("b", range(20, 40)))
    assert scheduled_counts(simulation) == {"a": 1, "b": 7}
    assert scheduled_counts(simulation) == {"a": 1, "b": 7}
    assert scheduled_counts(simulation) == {"a": 1, "b": 6}


def test_an_urgent_prompt_leaves_one_token_of_the_budget_to_each_that_runs() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    simulation.add(make_request("a", range(4), max_tokens=20))
    simulation.add(make_request("b", range(4), max_tokens=20))
    scheduled_counts(simulation)
    simulation.add(make_request("urgent", range(20, 40), priority=-1))
    scheduled_counts(simulation)
    assert scheduled_counts(simulation) == {"urgent": 6, "a": 1, "b": 1}


def test_no_more_sequences_run_than_the_budget_has_tokens() -> None:
    simulation = Simulation(make_config(max_num_seqs=4, max_num_batched_tokens=2))
    requests = [make_request(str(index), [index, 9]) for index in range(4)]
    for request in requests:
        simulation.add(request)
    scheduled_counts(simulation)
    scheduled_counts(simulation)
    assert simulation.scheduler.num_running <= 2
    simulation.run()
    for request in requests:
        simulation.assert_output(request)


def test_waiting_requests_start_by_priority_and_then_by_arrival() -> None:
    simulation = Simulation(make_config(max_num_seqs=1))
    for name, priority in [("low", 1), ("first", 0), ("second", 0), ("urgent", -5)]:
        simulation.add(make_request(name, [3], max_tokens=1, priority=priority))
    order = []
    while simulation.scheduler.has_unfinished:
        order += [delta.request_id for delta in simulation.step()]
    assert order == ["urgent", "first", "second", "low"]


def test_a_request_that_does_not_fit_yet_is_not_overtaken_by_a_smaller_one() -> None:
    simulation = Simulation(make_config(num_blocks=6, max_num_batched_tokens=16))
    simulation.add(make_request("runs", range(8), max_tokens=8))
    simulation.step()
    simulation.add(make_request("large", range(20, 36), max_tokens=2))
    simulation.add(make_request("small", [5], max_tokens=1))
    while "runs" not in simulation.reasons:
        simulation.step()
        assert not simulation.outputs.keys() & {"large", "small"}
    simulation.run()
    assert simulation.scheduler.stats().num_preemptions == 0


def test_an_end_token_stops_the_sequence_and_is_part_of_its_output() -> None:
    config = make_config(eos_token_ids=frozenset(range(0, 50, 2)))
    request = make_request("a", [1, 2, 3], max_tokens=40, ignore_eos=False)
    simulation = Simulation(config)
    simulation.add(request)
    simulation.run()
    simulation.assert_output(request)
    assert simulation.reasons["a"] is FinishReason.STOP
    assert simulation.outputs["a"][-1] in config.eos_token_ids


def test_stop_token_ids_stop_also_where_the_end_token_is_ignored() -> None:
    request = make_request("a", [1, 2, 3], max_tokens=40, stop_token_ids=tuple(range(0, 50, 2)))
    simulation = Simulation(make_config(eos_token_ids=frozenset(range(1, 50, 2))))
    simulation.add(request)
    simulation.run()
    simulation.assert_output(request)
    assert simulation.reasons["a"] is FinishReason.STOP


def test_the_context_limit_ends_a_sequence_that_asks_for_more() -> None:
    simulation = Simulation(make_config(max_model_len=10))
    simulation.add(make_request("a", range(6), max_tokens=1000))
    simulation.run()
    assert len(simulation.outputs["a"]) == 4
    assert simulation.reasons["a"] is FinishReason.LENGTH


def test_a_sequence_may_fill_the_whole_pool() -> None:
    simulation = Simulation(make_config(num_blocks=4, max_model_len=17))
    request = make_request("a", range(6), max_tokens=100)
    simulation.add(request)
    simulation.run()
    simulation.assert_output(request)
    assert len(simulation.outputs["a"]) == 11


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (make_request("x", []), InvalidRequest),
        (make_request("x", [1, -1]), InvalidRequest),
        (make_request("x", [1, 50]), InvalidRequest),
        (make_request("x", [1], max_tokens=0), InvalidRequest),
        (make_request("used", [1]), InvalidRequest),
        (make_request("x", [1] * 64), ContextTooLong),
        (make_request("x", [1] * 20, max_tokens=14), ContextTooLong),
    ],
)
def test_what_can_never_run_is_refused_and_leaves_no_trace(request_, error) -> None:  # type: ignore[no-untyped-def]
    simulation = Simulation(make_config(num_blocks=8))
    simulation.add(make_request("used", [1], max_tokens=1))
    with pytest.raises(error):
        simulation.add(request_)
    assert simulation.scheduler.num_waiting == 1
    simulation.run()


def test_the_longest_request_that_fits_the_pool_is_taken() -> None:
    simulation = Simulation(make_config(num_blocks=8))
    request = make_request("x", [1] * 20, max_tokens=13)
    simulation.add(request)
    simulation.run()
    simulation.assert_output(request)


@pytest.mark.parametrize(
    "name", ["max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_blocks", "block_size"]
)
def test_a_configuration_that_can_run_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_config(**{name: 0})


def test_the_youngest_is_preempted_when_blocks_run_out_and_ends_with_the_same_tokens() -> None:
    simulation = Simulation(make_config(num_blocks=6, max_num_batched_tokens=32, enable_prefix_caching=False))
    old = make_request("old", range(7), max_tokens=12)
    young = make_request("young", range(20, 27), max_tokens=12)
    simulation.add(old)
    simulation.add(young)
    simulation.run()
    assert {name for batch in simulation.batches for name in batch.preempted} == {"young"}
    assert simulation.scheduler.stats().num_preemptions == 1
    simulation.assert_output(old)
    simulation.assert_output(young)


def test_the_less_urgent_is_preempted_though_it_is_older() -> None:
    simulation = Simulation(make_config(num_blocks=6, max_num_batched_tokens=32))
    simulation.add(make_request("low", range(7), max_tokens=12, priority=1))
    simulation.add(make_request("high", range(20, 27), max_tokens=12))
    simulation.run()
    assert {name for batch in simulation.batches for name in batch.preempted} == {"low"}


def test_a_preempted_sequence_resumes_before_those_that_came_later() -> None:
    simulation = Simulation(make_config(num_blocks=6, max_num_batched_tokens=32))
    simulation.add(make_request("old", range(7), max_tokens=12))
    simulation.add(make_request("young", range(20, 27), max_tokens=12))
    while not simulation.batches or not simulation.batches[-1].preempted:
        simulation.step()
    simulation.add(make_request("later", [4], max_tokens=1))
    simulation.run()
    assert list(simulation.reasons) in (["old", "later", "young"], ["old", "young", "later"])
    first_step = {
        name: next(
            index
            for index, batch in enumerate(simulation.batches)
            if name in [item.sequence.request_id for item in batch.scheduled]
            and any("young" in earlier.preempted for earlier in simulation.batches[:index])
        )
        for name in ("young", "later")
    }
    assert first_step["young"] <= first_step["later"]


def test_admission_leaves_a_block_for_each_running_sequence_so_that_none_is_thrown_out_at_once() -> None:
    simulation = Simulation(make_config(num_blocks=6, max_num_batched_tokens=32))
    simulation.add(make_request("a", range(8), max_tokens=8))
    simulation.step()
    simulation.add(make_request("b", range(20, 32), max_tokens=9))
    assert scheduled_counts(simulation) == {"a": 1}  # 3 blocks are free, and b needs no more
    simulation.run()
    assert simulation.scheduler.stats().num_preemptions == 0


def test_aborting_frees_the_blocks_at_once_and_twice_is_false() -> None:
    simulation = Simulation(make_config())
    simulation.add(make_request("a", range(9)))
    simulation.add(make_request("waits", range(9)))
    simulation.step()
    assert simulation.abort("a")
    assert not simulation.abort("a")
    assert not simulation.abort("never heard of")
    assert simulation.abort("waits")
    assert simulation.scheduler.stats().kv_cache_usage == 0.0
    assert not simulation.scheduler.has_unfinished


def test_an_abort_between_schedule_and_commit_drops_the_result_even_if_the_id_returns() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=32))
    keeps = make_request("keeps", range(6))
    again = make_request("gone", range(10, 15))
    simulation.add(make_request("gone", range(6, 12)))
    simulation.add(keeps)
    batch = simulation.schedule()
    sampled = simulation.model.execute(batch)
    simulation.abort("gone")
    simulation.add(again)
    assert [delta.request_id for delta in simulation.commit(batch, sampled)] == ["keeps"]
    simulation.run()
    simulation.assert_output(keeps)
    simulation.assert_output(again)


def test_a_step_that_fails_ends_its_requests_and_no_other() -> None:
    simulation = Simulation(make_config(max_num_seqs=1))
    other = make_request("other", range(12))
    simulation.add(make_request("a", range(12)))
    simulation.add(other)
    batch = simulation.schedule()
    assert simulation.fail(batch) == ["a"]
    assert not simulation.abort("a")
    simulation.run()
    simulation.assert_output(other)
    assert "a" not in simulation.outputs


def test_only_a_batch_in_flight_can_be_committed_or_fail_and_only_once() -> None:
    simulation = Simulation(make_config())
    simulation.add(make_request("a", range(12)))
    batch = simulation.schedule()
    foreign = Batch(scheduled=batch.scheduled, preempted=batch.preempted)
    for use in (lambda: simulation.scheduler.commit(foreign, []), lambda: simulation.scheduler.fail(foreign)):
        with pytest.raises(InternalError, match="batch in flight"):
            use()
    simulation.commit(batch, simulation.model.execute(batch))
    with pytest.raises(InternalError, match="only once"):
        simulation.scheduler.commit(batch, [])
    simulation.run()


@pytest.mark.parametrize("sampled", [[], [(1,), (2,)], [()], [(1, 2)]])
def test_tokens_that_do_not_fit_the_batch_are_an_error_and_change_nothing(
    sampled: list[tuple[int, ...]],
) -> None:
    simulation = Simulation(make_config())
    request = make_request("a", range(5))
    simulation.add(request)
    batch = simulation.schedule()
    with pytest.raises(InternalError, match=r"for 1 sequences|no token, or more"):
        simulation.scheduler.commit(batch, sampled)
    simulation.commit(batch, simulation.model.execute(batch))
    simulation.run()
    simulation.assert_output(request)


def test_the_counters_tell_what_runs_and_waits() -> None:
    simulation = Simulation(make_config(max_num_seqs=1, num_blocks=8))
    simulation.add(make_request("a", range(5)))
    simulation.add(make_request("b", range(5)))
    simulation.step()
    stats = simulation.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (1, 1, 0.25)
    assert (simulation.scheduler.num_running, simulation.scheduler.num_waiting) == (1, 1)


def test_the_end_token_is_ignored_where_that_is_asked_for() -> None:
    request = next(
        candidate
        for candidate in (make_request("a", [seed], max_tokens=30) for seed in range(50))
        if EOS in expected_output(candidate, make_config())[0]
    )
    simulation = Simulation(make_config())
    simulation.add(request)
    simulation.run()
    assert len(simulation.outputs["a"]) == 30
