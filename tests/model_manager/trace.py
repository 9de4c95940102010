"""A server in virtual time under a trace of requests for more models than fit: real manager, fake workers.

A worker serves `SLOTS` requests at once, each for a time drawn from the trace's seed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from inference_server.config.settings import Settings
from tests.model_manager.fakes import FakeLauncher, build_house, now_s
from tests.model_manager.virtual_time import run

SLOTS = 4
SERVICE_S = (0.3, 1.0)
LOAD_S = 1.5
STOP_S = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """One of a trace; seconds from its start."""

    model: str
    at_s: float
    service_s: float


@dataclass(slots=True)
class Outcome:
    """What became of a trace. Waits are seconds from arrival to lease, sorted."""

    num_swaps: int = 0
    waits_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0

    def wait_s(self, share: float) -> float:
        """The wait that this share of the requests did not exceed."""
        return self.waits_s[min(len(self.waits_s) - 1, int(share * len(self.waits_s)))]


def zipf_trace(
    seed: int, *, num_requests: int = 600, num_models: int = 6, load: float = 0.8
) -> list[Request]:
    """Poisson arrivals at `load` × what two models in memory serve, models by Zipf's law with s = 1."""
    rng = random.Random(seed)
    mean_service_s = sum(SERVICE_S) / 2
    rate = load * 2 * SLOTS / mean_service_s
    names = [f"m{index}" for index in range(num_models)]
    weights = [1 / (index + 1) for index in range(num_models)]
    gaps = (rng.expovariate(rate) for _ in range(num_requests))
    return [
        Request(rng.choices(names, weights)[0], at_s, rng.uniform(*SERVICE_S))
        for at_s in itertools.accumulate(gaps)
    ]


def replay(trace: Sequence[Request], settings: Settings) -> Outcome:
    """Every request of the trace, in a server whose budget holds two of the models."""
    return run(_replay(trace, settings))


async def _replay(trace: Sequence[Request], settings: Settings) -> Outcome:
    names = sorted({request.model for request in trace})
    launcher = FakeLauncher(prepare_s=0.0, launch_s=LOAD_S, stop_s=STOP_S)
    house = build_house(dict.fromkeys(names, 10), budget=20, launcher=launcher, settings=settings)
    slots = {name: asyncio.Semaphore(SLOTS) for name in names}
    outcome, start_s = Outcome(), now_s()

    async def serve(request: Request) -> None:
        await asyncio.sleep(request.at_s)
        async with house.acquire(request.model):
            outcome.waits_s.append(now_s() - start_s - request.at_s)
            async with slots[request.model]:
                await asyncio.sleep(request.service_s)

    await asyncio.gather(*(serve(request) for request in trace))
    outcome.num_swaps = len(launcher.launched)
    outcome.duration_s = now_s() - start_s
    outcome.waits_s.sort()
    await house.manager.stop()
    return outcome
