"""A row's token depends on its logits, its seed and its position, and follows the distribution."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from inference_server.execution.rows import SampleRow
from inference_server.execution.sampler import INVALID_TOKEN, Sampler, uniform
from tests.execution.paged import make_row

VOCAB_SIZE = 700
EOS = 3


def sampler(salt: bytes = b"salt") -> Sampler:
    return Sampler([EOS], salt)


def noise(num_rows: int, vocab_size: int = VOCAB_SIZE, scale: float = 2.0) -> torch.Tensor:
    return torch.randn((num_rows, vocab_size), generator=torch.Generator().manual_seed(5)) * scale


def row_for(seed: int | None, length: int = 4, **sampling: Any) -> SampleRow:
    return make_row(list(range(length)), name=f"seed {seed}", seed=seed, **sampling)


def various(count: int) -> list[SampleRow]:
    """Rows with all kinds of settings."""
    rng = random.Random(9)
    return [
        row_for(
            number,
            length=rng.randint(1, 30),
            temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
            top_k=rng.choice([0, 0, 1, 20, 5000]),
            top_p=rng.choice([1.0, 1.0, 0.2, 0.95]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            min_tokens=rng.choice([0, 5]),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, 2500])
def test_a_token_is_the_same_whatever_the_batch(vocab_size: int) -> None:
    sequences, logits = various(40), noise(40, vocab_size)
    together = sampler().sample(logits.clone(), sequences)
    alone = [sampler().sample(logits[[n]].clone(), [sequences[n]])[0] for n in range(40)]
    order = list(range(40))
    random.Random(2).shuffle(order)
    shuffled = sampler().sample(logits[order].clone(), [sequences[n] for n in order])
    assert together == alone
    assert [together[n] for n in order] == shuffled
    assert all(0 <= token < vocab_size for token in together)


def test_seed_and_position_alone_decide_and_both_matter() -> None:
    logits = noise(1).expand(400, -1)
    by_seed = sampler().sample(logits.clone(), [row_for(seed) for seed in range(400)])
    by_position = sampler().sample(logits.clone(), [row_for(1, length=n + 1) for n in range(400)])
    assert len(set(by_seed)) > 20
    assert len(set(by_position)) > 20
    assert sampler(b"other").sample(logits.clone(), [row_for(seed) for seed in range(400)]) == by_seed


def test_requests_without_a_seed_differ_by_request_and_by_worker() -> None:
    logits = noise(1).expand(50, -1)
    sequences = [make_row([1, 2], name=f"request {number}") for number in range(50)]
    first = sampler(b"one").sample(logits.clone(), sequences)
    assert len(set(first)) > 5
    assert sampler(b"one").sample(logits.clone(), sequences) == first
    assert sampler(b"two").sample(logits.clone(), sequences) != first


def test_the_generator_is_uniform() -> None:
    for points in (
        [uniform(seed, 7) for seed in range(20_000)],
        [uniform(7, position) for position in range(20_000)],
    ):
        counts = Counter(int(point * 20) for point in points)
        assert min(points) >= 0.0
        assert max(points) < 1.0
        chi_square = sum((counts[cell] - 1000) ** 2 / 1000 for cell in range(20))
        assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        ({}, None),
        ({"temperature": 0.5}, None),
        ({"temperature": 2.0}, None),
        ({"top_k": 3}, 3),
        ({"temperature": 0.7, "top_k": 5}, 5),
    ],
)
def test_draws_follow_the_distribution(sampling: dict[str, Any], allowed: int | None) -> None:
    num_draws, vocab_size = 20_000, 12
    logits = noise(1, vocab_size)
    expected = (logits[0].double() / sampling.get("temperature", 1.0)).softmax(-1)
    if allowed is not None:
        top = expected.topk(allowed)
        expected = torch.zeros_like(expected).scatter(0, top.indices, top.values / top.values.sum())
    sequences = [row_for(seed, **sampling) for seed in range(num_draws)]
    counts = Counter(sampler().sample(logits.expand(num_draws, -1).clone(), sequences))
    cells = [(counts[t], num_draws * p) for t, p in enumerate(expected.tolist())]
    assert all(count == 0 for count, mean in cells if mean == 0)
    likely = [(count, mean) for count, mean in cells if mean >= 5]
    chi_square = sum((count - mean) ** 2 / mean for count, mean in likely)
    assert chi_square < 31.3  # 11 degrees of freedom, p = 0.001


def test_draws_reach_every_block_of_a_large_vocabulary() -> None:
    logits = torch.full((2000, 1000), -math.inf)
    likely = [0, 255, 256, 511, 512, 999]
    logits[:, likely] = 1.0
    counts = Counter(sampler().sample(logits, [row_for(seed) for seed in range(2000)]))
    assert sorted(counts) == likely
    assert all(250 < count < 420 for count in counts.values())


def test_tokens_that_are_ruled_out_are_never_drawn() -> None:
    logits = torch.full((3000, 600), -math.inf)
    logits[:, 300] = 0.0
    logits[:, 301] = -80.0
    assert set(sampler().sample(logits, [row_for(seed) for seed in range(3000)])) == {300}


def test_greedy_takes_the_largest_and_ignores_the_seed() -> None:
    logits = noise(5)
    sequences = [row_for(seed, temperature=0.0, top_p=0.1, top_k=2) for seed in range(5)]
    assert sampler().sample(logits.clone(), sequences) == logits.argmax(-1).tolist()


def test_a_low_temperature_and_a_narrow_filter_are_as_good_as_greedy() -> None:
    logits = noise(6)
    settings: list[dict[str, Any]] = [
        {"temperature": 1e-5},
        {"temperature": 1e-3},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"top_k": 1, "top_p": 0.5, "min_p": 0.5},
    ]
    sequences = [row_for(number, **setting) for number, setting in enumerate(settings)]
    assert sampler().sample(logits.clone(), sequences) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_invalid_and_its_neighbours_are_untouched(
    temperature: float, damage: float
) -> None:
    sequences = [row_for(seed, temperature=temperature, top_p=0.9, top_k=50) for seed in range(3)]
    logits = noise(3)
    clean = sampler().sample(logits.clone(), sequences)
    logits[1, 17] = damage
    assert sampler().sample(logits.clone(), sequences) == [clean[0], INVALID_TOKEN, clean[2]]
    logits[1] = damage
    assert sampler().sample(logits.clone(), sequences) == [clean[0], INVALID_TOKEN, clean[2]]


def test_a_row_without_any_allowed_token_is_invalid() -> None:
    assert sampler().sample(torch.full((1, 9), -math.inf), [row_for(1)]) == [INVALID_TOKEN]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_holds_back_the_end_of_sequence(temperature: float) -> None:
    logits = torch.zeros(1, 8)
    logits[0, EOS] = 50.0
    held = make_row([1], min_tokens=1, temperature=temperature, seed=0)
    free = make_row([1, 2], num_prompt_tokens=1, min_tokens=1, temperature=temperature, seed=0)
    assert sampler().sample(logits.clone(), [held]) != [EOS]
    assert sampler().sample(logits.clone(), [free]) == [EOS]


def test_half_precision_logits_and_no_logits_are_fine() -> None:
    logits = noise(2).bfloat16()
    greedy = [row_for(seed, temperature=0.0) for seed in range(2)]
    assert sampler().sample(logits, greedy) == logits.argmax(-1).tolist()
    assert sampler().sample(torch.empty(0, 8), []) == []
