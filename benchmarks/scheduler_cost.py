"""What a step costs besides the model: scheduling, the engine's loop, and the frame that goes to the server.

Prints, for several numbers of decoding sequences, microseconds per step (best of several rounds of 16 steps,
so that each includes one publication of a full block per sequence) of

- `schedule` and `commit` alone,
- `TextEngine.step` over a runner that computes nothing,
- encoding the step's frame, and its size.

Run it from the repository: `python -m benchmarks.scheduler_cost [--rounds N]`. Turning tokens into text is no
part of a step: the server process does that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

from inference_server.engine.text_engine import TextEngine
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.pending import FinishedStep
from inference_server.scheduling.scheduler import Scheduler
from inference_server.types import GenerationRequest, SamplingParams, TokenDelta
from inference_server.worker.channel import encode
from inference_server.worker.protocol import StepOutput

SIZES = (1, 16, 64, 256)
STEPS_PER_ROUND = 16  # one block
PROMPT_TOKENS = 100
VOCAB_SIZE = 50_000
TOKEN = 5


class IdleRunner:
    """A `StepRunner` that computes nothing."""

    max_in_flight = 1

    def launch(self, batch: Batch) -> FinishedStep:
        """Every sequence gets the same token."""
        return FinishedStep(answer(batch))

    def is_fatal(self, error: Exception) -> bool:
        """Nothing can fail."""
        return False


def answer(batch: Batch) -> Seq[Seq[int]]:
    """What a runner would return."""
    return [(TOKEN,)] * len(batch.sampling)


def decoding_scheduler(num_seqs: int, max_tokens: int) -> Scheduler:
    """A scheduler with so many sequences, whose prompts are computed."""
    max_model_len = PROMPT_TOKENS + max_tokens
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=num_seqs * PROMPT_TOKENS,
            max_model_len=max_model_len,
            num_blocks=num_seqs * (max_model_len // 16 + 1),
        )
    )
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    for index in range(num_seqs):
        prompt = tuple(range(index, index + PROMPT_TOKENS))
        scheduler.add(
            GenerationRequest(request_id=f"request-{index:016}", prompt_token_ids=prompt, sampling=sampling)
        )
    batch = scheduler.schedule()
    scheduler.commit(batch, answer(batch))
    return scheduler


def scheduling_round(scheduler: Scheduler) -> Callable[[], object]:
    """One round of `schedule` and `commit`, to be timed."""

    def work() -> None:
        for _ in range(STEPS_PER_ROUND):
            batch = scheduler.schedule()
            scheduler.commit(batch, [(TOKEN,)] * len(batch.scheduled))

    return work


def engine_round(scheduler: Scheduler) -> Callable[[], object]:
    """One round of the engine's steps, to be timed."""
    engine = TextEngine(scheduler, IdleRunner(), VOCAB_SIZE)

    def work() -> None:
        for _ in range(STEPS_PER_ROUND):
            engine.step()

    return work


def encoding_round(frame: StepOutput) -> Callable[[], object]:
    """One round of encoding, to be timed."""

    def work() -> None:
        for _ in range(STEPS_PER_ROUND):
            encode(frame)

    return work


def step_frame(scheduler: Scheduler) -> StepOutput:
    """The frame of one step."""
    outcome = TextEngine(scheduler, IdleRunner(), VOCAB_SIZE).step()
    deltas: tuple[TokenDelta, ...] = outcome.deltas
    return StepOutput(deltas=deltas, stats=outcome.stats)


def best_seconds(rounds: int, *works: Callable[[], object]) -> list[float]:
    """The fastest of several runs of each, in turns, so that a slow moment hits all alike."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for index, work in enumerate(works):
            started_s = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - started_s)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    max_tokens = STEPS_PER_ROUND * (rounds + 1) + 2
    print(
        "| decoding sequences | schedule + commit, µs | engine step, µs | encode frame, µs | frame, bytes |"
    )
    print("|---|---|---|---|---|")
    for num_seqs in SIZES:
        frame = step_frame(decoding_scheduler(num_seqs, max_tokens))
        seconds = best_seconds(
            rounds,
            scheduling_round(decoding_scheduler(num_seqs, max_tokens)),
            engine_round(decoding_scheduler(num_seqs, max_tokens)),
            encoding_round(frame),
        )
        cells = " | ".join(f"{value / STEPS_PER_ROUND * 1e6:.1f}" for value in seconds)
        print(f"| {num_seqs} | {cells} | {len(encode(frame))} |")


if __name__ == "__main__":
    main()
