"""Virtual time for a scheduler: each step takes what a linear cost model says, and every gap is noted."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from inference_server.scheduling.batch import Batch
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.scheduler import Scheduler
from inference_server.types import TokenDelta
from tests.scheduling.simulation import make_request


@dataclass(frozen=True)
class Costs:
    """Seconds of a step. The defaults are those of a small model on two CPU cores.

    `prompt_s` is paid once by a step with prompt tokens, `depth_s` by each for every token before its piece.
    `noise`: each step takes up to this share longer.
    """

    step_s: float = 0.007
    decode_s: float = 0.001
    prompt_token_s: float = 0.0005
    prompt_s: float = 0.0
    depth_s: float = 0.0
    noise: float = 0.0

    def of(self, batch: Batch, rng: random.Random) -> float:
        """What a batch takes."""
        num_decodes = len(batch.decoding)
        num_prompt_tokens = batch.num_tokens - num_decodes
        exact = self.of_quiet(num_decodes) + self.prompt_token_s * num_prompt_tokens
        exact += self.prompt_s if num_prompt_tokens else 0.0
        exact += self.depth_s * batch.prompt_depth * num_prompt_tokens
        return exact * (1 + self.noise * rng.random())

    def of_quiet(self, num_decodes: int) -> float:
        """What a step of decodes alone takes, without noise."""
        return self.step_s + self.decode_s * num_decodes


@dataclass
class TimedRun:
    """A scheduler in virtual time, with `depth` steps in flight. Every token is 1."""

    config: SchedulerConfig
    costs: Costs = Costs()
    depth: int = 1
    now_s: float = 0.0
    num_tokens: int = 0
    first_s: dict[str, float] = field(default_factory=dict)
    finished_s: dict[str, float] = field(default_factory=dict)
    gaps: list[tuple[str, float, float]] = field(default_factory=list)  # request, when, how long

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config)
        self._in_flight: deque[Batch] = deque()
        self._last_s: dict[str, float] = {}
        self._rng = random.Random(1)

    def add(self, name: str, num_prompt_tokens: int, max_tokens: int, *, salt: str | None = None) -> None:
        """A request. It shares nothing with others, as its name is its salt, unless it is given another."""
        prompt = [position % 50 for position in range(num_prompt_tokens)]
        salt = name if salt is None else salt
        self.scheduler.add(make_request(name, prompt, max_tokens=max_tokens, salt=salt))

    def step(self) -> list[TokenDelta]:
        """One step of the engine's loop."""
        while len(self._in_flight) < self.depth and (batch := self.scheduler.schedule()).scheduled:
            self._in_flight.append(batch)
        batch = self._in_flight.popleft()
        seconds = self.costs.of(batch, self._rng)
        self.now_s += seconds
        deltas = self.scheduler.commit(batch, [(1,)] * len(batch.sampling))
        self.scheduler.observe(batch, seconds)
        for delta in deltas:
            self._take(delta)
        return deltas

    def run_until(self, name: str) -> None:
        """Go on until a request has its first token."""
        while name not in self.first_s:
            self.step()

    def gaps_between(self, start_s: float, end_s: float, names: set[str]) -> list[float]:
        """The waits between tokens of these requests that ended in an interval, sorted."""
        return sorted(gap for name, at_s, gap in self.gaps if name in names and start_s < at_s <= end_s)

    def _take(self, delta: TokenDelta) -> None:
        name = delta.request_id
        self.num_tokens += len(delta.token_ids)
        if name in self._last_s:
            self.gaps.append((name, self.now_s, self.now_s - self._last_s[name]))
        else:
            self.first_s[name] = self.now_s
        self._last_s[name] = self.now_s
        if delta.finish_reason is not None:
            self.finished_s[name] = self.now_s


def closed_loop(run: TimedRun, *, num_streams: int, num_requests: int, prompt: int, output: int) -> float:
    """Output tokens per second when every stream sends its next request as soon as it has its answer."""
    for index in range(num_streams):
        run.add(f"r{index}", prompt, output)
    num_sent = num_streams
    while len(run.finished_s) < num_requests:
        for delta in run.step():
            if delta.finish_reason is not None and num_sent < num_requests:
                run.add(f"r{num_sent}", prompt, output)
                num_sent += 1
    return run.num_tokens / run.now_s
