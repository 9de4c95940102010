"""Tenants share a model: by tokens served, whoever sends how much, and whatever priorities they claim."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_server.types import GenerationRequest
from tests.scheduling.simulation import Simulation, make_config, make_request


def ask(name: str, tenant: str, *, prompt: int = 4, answer: int = 4, priority: int = 0) -> GenerationRequest:
    return make_request(name, [1] * prompt, max_tokens=answer, tenant=tenant, salt=name, priority=priority)


def finished(simulation: Simulation, num_steps: int) -> list[str]:
    """Requests in the order in which they end, within so many steps."""
    ended: list[str] = []
    for _ in range(num_steps):
        if simulation.scheduler.has_unfinished:
            ended += [delta.request_id for delta in simulation.step() if delta.finish_reason is not None]
    return ended


def test_a_newcomer_is_next_however_many_wait_of_another() -> None:
    simulation = Simulation(make_config(max_num_seqs=1))
    for number in range(50):
        simulation.add(ask(f"a{number}", "a"))
    simulation.step()
    simulation.add(ask("b", "b"))
    assert finished(simulation, 9)[:2] == ["a0", "b"]


def test_priority_orders_a_tenants_own_requests_only() -> None:
    simulation = Simulation(make_config(max_num_seqs=1))
    for name, tenant, priority in (
        ("a0", "a", 0), ("a1", "a", -100), ("a2", "a", -200), ("b0", "b", 5), ("b1", "b", 4),
    ):  # fmt: skip
        simulation.add(ask(name, tenant, priority=priority))
    order = finished(simulation, 60)
    assert [name for name in order if name[0] == "a"] == ["a2", "a1", "a0"]
    assert [name for name in order if name[0] == "b"] == ["b1", "b0"]
    assert {order[0][0], order[1][0]} == {"a", "b"}


def test_an_urgent_request_does_not_take_another_tenants_blocks() -> None:
    simulation = Simulation(make_config(num_blocks=6, max_model_len=24))
    simulation.add(ask("b", "b", prompt=8, answer=12))
    simulation.step()
    simulation.add(ask("a", "a", prompt=4, answer=12, priority=-1000))
    order = finished(simulation, 60)
    assert order[0] == "b"
    assert simulation.scheduler.stats().num_preemptions >= 0


def test_a_pause_earns_no_credit() -> None:
    simulation = Simulation(make_config(max_num_seqs=1))
    for number in range(40):
        simulation.add(ask(f"a{number}", "a"))
    simulation.add(ask("b0", "b"))
    finished(simulation, 100)
    for number in range(1, 21):
        simulation.add(ask(f"b{number}", "b"))
    counts = Counter(name[0] for name in finished(simulation, 60))
    assert abs(counts["a"] - counts["b"]) <= 1


def test_answers_count_twice_as_much_as_prompts() -> None:
    simulation = Simulation(make_config(max_num_seqs=1, max_model_len=64, num_blocks=64))
    for number in range(60):
        simulation.add(ask(f"p{number}", "prompts", prompt=20, answer=1))
        simulation.add(ask(f"a{number}", "answers", prompt=1, answer=10))
    counts = Counter(name[0] for name in finished(simulation, 400))
    assert 0.85 < counts["p"] * 22 / (counts["a"] * 21) < 1.15


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    num_tenants=st.integers(2, 5),
    num_slots=st.integers(1, 4),
    max_prompt=st.integers(1, 24),
    max_answer=st.integers(1, 24),
)
def test_who_always_waits_is_served_as_much_as_anybody_up_to_what_the_slots_hold(
    seed: int, num_tenants: int, num_slots: int, max_prompt: int, max_answer: int
) -> None:
    """The bound of the paper: two requests' worth for each place that a tenant can hold at once."""
    rng = random.Random(seed)
    config = make_config(max_num_seqs=num_slots, max_model_len=64, num_blocks=16 * num_slots + 16)
    simulation = Simulation(config)
    served: Counter[str] = Counter()
    names = [f"t{number}" for number in range(num_tenants)]
    size = {name: (rng.randint(1, max_prompt), rng.randint(1, max_answer)) for name in names}
    requests: dict[str, GenerationRequest] = {}
    for number in range(30 * num_slots):
        for name in names:
            prompt, answer = size[name]
            request = ask(f"{name}-{number}", name, prompt=prompt, answer=answer)
            requests[request.request_id] = request
            simulation.scheduler.add(request)
    for _ in range(30):
        for delta in simulation.step():
            tenant = requests[delta.request_id].tenant
            served[tenant] += 2 * len(delta.token_ids)
            if len(simulation.outputs[delta.request_id]) == len(delta.token_ids):
                served[tenant] += size[tenant][0]
    bound = 2 * num_slots * (max_prompt + 2 * max_answer)
    assert max(served[name] for name in names) - min(served[name] for name in names) <= bound


def test_when_all_are_gone_nobody_owes_anything() -> None:
    simulation = Simulation(make_config(max_num_seqs=1))
    for number in range(5):
        simulation.add(ask(f"a{number}", "a"))
    simulation.run()
    simulation.add(ask("late a", "a"))
    simulation.add(ask("late b", "b"))
    assert finished(simulation, 20) == ["late a", "late b"]
