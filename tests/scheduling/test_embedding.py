from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.errors import ContextTooLong, InvalidRequest
from inference_server.scheduling.embedding import BatchLimits, WaitingInput, choose_inputs
from inference_server.scheduling.embedding_queue import EmbeddingQueue
from inference_server.types import EmbeddingRequest

LIMITS = BatchLimits(max_num_tokens=100, max_num_seqs=8, overhead_tokens=10)
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def request(name: str, *num_tokens: int) -> EmbeddingRequest:
    return EmbeddingRequest(request_id=name, inputs=tuple((1,) * count for count in num_tokens))


def waiting(num_tokens: list[int], ranks: list[float] | None = None) -> list[WaitingInput]:
    whole = request("a", *num_tokens)
    return [WaitingInput(ranks[at] if ranks else at, 0, at, whole) for at in range(len(num_tokens))]


def queue(limits: BatchLimits = LIMITS) -> EmbeddingQueue:
    return EmbeddingQueue(limits, max_model_len=60)


@given(lengths, st.integers(1, 80), st.integers(1, 10), st.integers(0, 200))
def test_a_batch_holds_the_input_that_is_due_and_keeps_the_limits(
    num_tokens: list[int], max_tokens: int, max_seqs: int, overhead: int
) -> None:
    inputs = waiting(num_tokens)
    chosen = choose_inputs(inputs, BatchLimits(max_tokens, max_seqs, overhead))
    assert inputs[0] in chosen
    assert len({one.index for one in chosen}) == len(chosen) <= max_seqs
    assert len(chosen) == 1 or len(chosen) * max(one.num_tokens for one in chosen) <= max_tokens


@given(lengths, st.integers(0, 200))
def test_company_never_makes_a_token_dearer(num_tokens: list[int], overhead: int) -> None:
    inputs = waiting(num_tokens)
    chosen = choose_inputs(inputs, BatchLimits(1000, 1000, overhead))
    area = len(chosen) * max(one.num_tokens for one in chosen)
    useful = sum(one.num_tokens for one in chosen)
    alone = (overhead + inputs[0].num_tokens) / inputs[0].num_tokens
    assert (overhead + area) / useful <= alone + 1e-9


def test_inputs_of_one_length_share_a_batch_and_a_long_one_does_not_stretch_it() -> None:
    chosen = choose_inputs(waiting([5, 60, 5, 5]), LIMITS)
    assert sorted(one.index for one in chosen) == [0, 2, 3]


@given(st.lists(lengths, min_size=1, max_size=6))
def test_every_input_is_taken_exactly_once(requests: list[list[int]]) -> None:
    inputs = queue()
    for name, num_tokens in enumerate(requests):
        inputs.add(request(str(name), *num_tokens))
    taken = []
    while inputs:
        taken += [(one.request.request_id, one.index) for one in inputs.take()]
    expected = [(str(name), at) for name, found in enumerate(requests) for at in range(len(found))]
    assert sorted(taken) == sorted(expected)
    assert inputs.take() == ()


def test_one_input_does_not_wait_behind_two_thousand() -> None:
    inputs = queue()
    inputs.add(request("large", *[20] * 2000))
    for _ in range(10):
        inputs.take()
    inputs.add(request("small", 50))
    steps = 0
    while not any(one.request.request_id == "small" for one in inputs.take()):
        steps += 1
    assert steps <= 2


def test_a_large_request_moves_on_however_many_small_ones_come() -> None:
    inputs = queue()
    inputs.add(request("large", *[60] * 10))
    left = 10
    for step in range(1000):
        inputs.add(request(f"small{step}", 20))
        left -= sum(one.request.request_id == "large" for one in inputs.take())
    assert left == 0


def test_what_is_aborted_is_never_taken() -> None:
    inputs = queue()
    inputs.add(request("a", 5, 5))
    assert inputs.abort("a")
    assert not inputs.abort("a")
    assert not inputs
    assert inputs.num_waiting == 0


def test_what_can_never_run_is_refused() -> None:
    inputs = queue()
    with pytest.raises(ContextTooLong, match="61 tokens; the model takes 60"):
        inputs.add(request("a", 61))
    for bad in (request("a"), request("a", 1, 0)):
        with pytest.raises(InvalidRequest, match="empty"):
            inputs.add(bad)
    inputs.add(request("a", 1))
    with pytest.raises(InvalidRequest, match="in use"):
        inputs.add(request("a", 1))
