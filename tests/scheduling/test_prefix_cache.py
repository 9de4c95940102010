"""What is shared between sequences, and what never is."""

from __future__ import annotations

from statistics import median

import pytest

from inference_server.scheduling.prefix_cache import chained_key, root_key
from tests.scheduling.simulation import Simulation, make_config, make_request
from tests.scheduling.timing import TimedRun


def cached_tokens(simulation: Simulation, *args: object, **kwargs: object) -> int:
    """Run one request alone; how many of its prompt tokens came from the cache."""
    request = make_request(*args, **kwargs)  # type: ignore[arg-type]
    simulation.add(request)
    simulation.run()
    simulation.assert_output(request)
    return simulation.cached[request.request_id]


def test_a_repeated_prompt_is_found_up_to_its_last_full_block() -> None:
    simulation = Simulation(make_config())
    assert cached_tokens(simulation, "a", range(18)) == 0
    assert cached_tokens(simulation, "b", range(18)) == 16


def test_the_last_prompt_token_is_always_computed() -> None:
    simulation = Simulation(make_config())
    cached_tokens(simulation, "a", range(16))
    assert cached_tokens(simulation, "b", range(16)) == 12


def test_generated_tokens_are_found_by_the_next_turn_of_a_conversation() -> None:
    simulation = Simulation(make_config())
    cached_tokens(simulation, "a", range(6), max_tokens=11)
    turn = [*range(6), *simulation.outputs["a"], 1, 2, 3]
    assert cached_tokens(simulation, "b", turn) == 16


def test_a_different_token_ends_the_match_even_if_later_blocks_are_equal() -> None:
    simulation = Simulation(make_config())
    cached_tokens(simulation, "a", range(18))
    assert cached_tokens(simulation, "b", [0, 1, 2, 3, 40, 5, 6, 7, *range(8, 18)]) == 4
    assert cached_tokens(simulation, "c", [40, *range(1, 18)]) == 0


def test_salts_keep_tenants_apart() -> None:
    simulation = Simulation(make_config())
    cached_tokens(simulation, "a", range(18), salt="one")
    assert cached_tokens(simulation, "b", range(18), salt="two") == 0
    assert cached_tokens(simulation, "c", range(18)) == 0
    assert cached_tokens(simulation, "d", range(18), salt="one") == 16


def test_nothing_is_cached_when_the_cache_is_off() -> None:
    simulation = Simulation(make_config(enable_prefix_caching=False))
    cached_tokens(simulation, "a", range(18))
    assert cached_tokens(simulation, "b", range(18)) == 0
    assert simulation.scheduler.stats().prefix_cache_queries == 0


def test_a_block_is_shared_by_two_that_run_and_outlives_the_first() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=32))
    first = make_request("a", range(18), max_tokens=3)
    second = make_request("b", [*range(16), 30, 31], max_tokens=12)
    simulation.add(first)
    simulation.step()
    simulation.add(second)
    simulation.step()
    tables = [item.sequence.block_ids for item in simulation.batches[-1].scheduled]
    assert tables[0][:4] == tables[1][:4]
    assert tables[0][4] != tables[1][4]
    simulation.run()
    simulation.assert_output(first)
    simulation.assert_output(second)


def test_a_beginning_that_many_share_is_computed_once_though_all_come_at_once() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=64, max_num_seqs=16, num_blocks=200))
    requests = [make_request(str(number), [*range(40), number]) for number in range(16)]
    for request in requests:
        simulation.add(request)
    simulation.step()
    assert simulation.scheduler.num_running == 1
    simulation.step()
    assert simulation.cached == {"0": 0} | {str(number): 40 for number in range(1, 16)}
    simulation.run()
    for request in requests:
        simulation.assert_output(request)


@pytest.mark.parametrize("slowdown", [0.0, 2.5])
def test_a_shared_1000_token_beginning_gives_16_first_tokens_five_times_sooner(slowdown: float) -> None:
    first_tokens_s = []
    for enable_prefix_caching in (False, True):
        config = make_config(
            max_num_seqs=64,
            max_num_batched_tokens=512,
            max_model_len=2048,
            block_size=16,
            num_blocks=2048,
            enable_prefix_caching=enable_prefix_caching,
            prefill_slowdown=slowdown,
        )
        run = TimedRun(config)
        for number in range(16):
            run.add(str(number), 1000 + 2 * number, 64, salt="the same")
        while len(run.first_s) < 16:
            run.step()
        first_tokens_s.append(median(run.first_s.values()))
    assert first_tokens_s[0] > 5 * first_tokens_s[1]


def test_blocks_are_not_found_before_they_are_computed() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    simulation.add(make_request("a", range(18)))
    simulation.add(make_request("b", range(18)))
    counts = []
    while "b" not in simulation.cached:
        simulation.step()
        counts.append({s.sequence.request_id: s.start for s in simulation.batches[-1].scheduled})
    assert counts[:3] == [{"a": 0}, {"a": 8}, {"a": 16, "b": 16}]


def test_who_shares_nothing_does_not_wait_behind_those_that_do() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=64))
    for name, prompt in (("a", range(18)), ("same", range(18)), ("other", range(20, 38))):
        simulation.add(make_request(name, prompt))
    batch = simulation.schedule()
    assert [item.sequence.request_id for item in batch.scheduled] == ["a", "other"]
    simulation.commit(batch, simulation.model.execute(batch))
    simulation.run()


def test_who_waits_for_a_beginning_computes_it_when_the_first_is_gone() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    waits = make_request("waits", range(18))
    simulation.add(make_request("a", range(18)))
    simulation.add(waits)
    simulation.step()
    simulation.abort("a")
    simulation.run()
    assert simulation.cached["waits"] == 8
    simulation.assert_output(waits)


def test_an_aborted_prompt_leaves_only_what_it_had_computed() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    simulation.add(make_request("a", range(18)))
    simulation.step()
    batch = simulation.schedule()
    simulation.abort("a")
    simulation.commit(batch, [])
    assert cached_tokens(simulation, "b", range(18)) == 8


@pytest.mark.parametrize(("prompt", "expected"), [(range(17), 8), (range(20, 37), 16)])
def test_a_cached_prefix_is_eaten_from_its_end_and_the_oldest_goes_first(
    prompt: range, expected: int
) -> None:
    simulation = Simulation(make_config(num_blocks=10, max_num_batched_tokens=64))
    cached_tokens(simulation, "old", range(17), max_tokens=1)  # 4 cached blocks
    cached_tokens(simulation, "new", range(20, 37), max_tokens=1)  # 4 more
    cached_tokens(simulation, "other", [40] * 16, max_tokens=1)  # takes 2 without content, then 2 of old
    assert cached_tokens(simulation, "again", prompt, max_tokens=1) == expected


def test_using_a_prefix_makes_it_young_again() -> None:
    simulation = Simulation(make_config(num_blocks=10, max_num_batched_tokens=64))
    cached_tokens(simulation, "old", range(17), max_tokens=1)
    cached_tokens(simulation, "new", range(20, 37), max_tokens=1)
    cached_tokens(simulation, "touch", range(17), max_tokens=1)
    cached_tokens(simulation, "other", [40] * 16, max_tokens=1)
    assert cached_tokens(simulation, "old again", range(17), max_tokens=1) == 16


def test_a_hit_on_free_blocks_does_not_count_them_as_room_twice() -> None:
    # Of 6 blocks "a" leaves 4 cached; its repetition plus growth needs all 6 while nothing else is free.
    simulation = Simulation(make_config(num_blocks=6, max_num_batched_tokens=64))
    cached_tokens(simulation, "a", range(17), max_tokens=1)
    simulation.add(make_request("b", [45], max_tokens=5))
    simulation.add(make_request("c", range(17), max_tokens=4))
    simulation.run()
    assert simulation.cached["c"] == 16


def test_queries_and_hits_count_prompt_tokens_of_first_admissions_only() -> None:
    simulation = Simulation(make_config(num_blocks=8, max_num_batched_tokens=64))
    requests = [make_request(name, range(9), max_tokens=20) for name in ("a", "b", "c")]
    for request in requests:
        simulation.add(request)
        simulation.step()
    simulation.run()
    stats = simulation.scheduler.stats()
    assert stats.num_preemptions > 0
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (27, 16)
    for request in requests:
        simulation.assert_output(request)


def test_a_preempted_sequence_takes_up_what_is_left_of_its_own_blocks() -> None:
    simulation = Simulation(make_config(num_blocks=7, max_num_batched_tokens=64))
    simulation.add(make_request("old", range(7), max_tokens=16))
    simulation.add(make_request("young", range(20, 27), max_tokens=16))
    while not simulation.batches or not simulation.batches[-1].preempted:
        simulation.step()
    while "old" not in simulation.reasons:
        simulation.step()
    batch = simulation.schedule()
    assert [item.sequence.request_id for item in batch.scheduled] == ["young"]
    assert batch.scheduled[0].start > 0
    simulation.commit(batch, simulation.model.execute(batch))
    simulation.run()
    assert simulation.cached["young"] == 0


def test_keys_cover_the_tokens_their_order_their_prefix_and_the_salt() -> None:
    keys = {
        chained_key(root_key(""), [1, 2]),
        chained_key(root_key(""), [2, 1]),
        chained_key(root_key("x"), [1, 2]),
        chained_key(chained_key(root_key(""), [1, 2]), [1, 2]),
        root_key(""),
        root_key("x"),
    }
    assert len(keys) == 6
    assert chained_key(root_key("x"), [1, 2]) == chained_key(root_key("x"), (1, 2))
    assert root_key("\ud800") != root_key("?")
