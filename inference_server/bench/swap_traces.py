"""Which model is asked when: the traces of `bench swap`, given by numbers and a seed. Pure; no server."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from inference_server.bench.options import SwapOptions
from inference_server.bench.workload import make_arrivals


@dataclass(frozen=True, slots=True)
class Trace:
    """Request `i` asks model number `models[i]`, `arrivals_s[i]` seconds after the start.

    `seed` is None for a trace that has no randomness.
    """

    name: str
    arrivals_s: tuple[float, ...]
    models: tuple[int, ...]
    seed: int | None = None


def ping_pong(num_requests: int, num_models: int, request_rate: float) -> Trace:
    """Models in turn, A B C A B C, evenly `request_rate` per second: the worst case for a smaller cache."""
    arrivals_s = tuple(index / request_rate for index in range(num_requests))
    return Trace("ping-pong", arrivals_s, tuple(index % num_models for index in range(num_requests)))


def burst(num_requests: int, num_models: int) -> Trace:
    """All requests at once, models in turn."""
    models = tuple(index % num_models for index in range(num_requests))
    return Trace("burst", (0.0,) * num_requests, models)


def zipf(num_requests: int, num_models: int, exponent: float, request_rate: float, seed: int) -> Trace:
    """Model k, counted from 1, has a share in proportion to k^-`exponent`; Poisson arrivals."""
    rng = random.Random(seed)
    weights = [rank**-exponent for rank in range(1, num_models + 1)]
    models = tuple(rng.choices(range(num_models), weights, k=num_requests))
    return Trace("zipf", make_arrivals(num_requests, request_rate, 1.0, rng), models, seed)


def traces_of(options: SwapOptions, request_rate: float) -> list[Trace]:
    """The traces that the options name, in their order; one per seed where there is chance.

    Ping-pong goes over one model more than fit, a burst over all; both are a fifth as long as a Zipf trace.
    """
    num_models, num_requests = options.num_models, options.num_prompts
    num_few = max(num_models, num_requests // 5)
    made: Mapping[str, Callable[[], list[Trace]]] = MappingProxyType(
        {
            "ping-pong": lambda: [
                ping_pong(num_few, min(num_models, options.num_resident + 1), request_rate)
            ],
            "burst": lambda: [burst(num_few, num_models)],
            "zipf": lambda: [
                zipf(num_requests, num_models, options.exponent, request_rate, seed) for seed in options.seeds
            ],
        }
    )
    return [trace for name in options.traces for trace in made[name]()]
