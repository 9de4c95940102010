"""Where the time of one step of the native CPU kernels goes: milliseconds per kind of phase.

Run alone on the machine: `python -m benchmarks.step_profile FOLDER`, a prepared folder such as those under
`converted/` in the cache. Prints a Markdown table; each column is the fastest of several equal steps.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from inference_server.engine.native import build_native_engine
from inference_server.execution.native.runner import NativeRunner
from inference_server.execution.native.step import PHASES_OF_A_LAYER
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.sequence import Sequence
from inference_server.types import EngineSpec, GenerationRequest, SamplingParams

BLOCK = 16
STEPS = {
    "1 stream": (1, 200, 1), "4 streams": (4, 200, 1), "16 streams": (16, 200, 1), "32 streams": (32, 200, 1),
    "150-token prompt": (1, 0, 150), "512-token prompt": (1, 0, 512),
}  # fmt: skip
NUM_REPEATS = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--quantization", default="gguf")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    spec = EngineSpec(
        model="profiled", folder=arguments.folder, device="cpu", dtype=arguments.dtype, kernels="native",
        quantization=arguments.quantization, max_model_len=1024, kv_cache_tokens=32 * 224,
        max_num_seqs=32, max_num_batched_tokens=1024,
    )  # fmt: skip
    engine, _ = build_native_engine(spec, lambda stage, fraction: None)
    runner = engine.runner
    assert isinstance(runner, NativeRunner)
    columns = {name: profile(runner, _batch(*shape)) for name, shape in STEPS.items()}
    print(f"| phase, ms | {' | '.join(columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    for phase in next(iter(columns.values())):
        print(f"| {phase} | {' | '.join(f'{column[phase]:.2f}' for column in columns.values())} |")


def profile(runner: NativeRunner, batch: Batch) -> dict[str, float]:
    """Milliseconds of the fastest of several steps, by kind of phase."""
    ms_per_cycle = _ms_per_cycle(runner, batch)
    best: dict[str, float] = {}
    for _ in range(NUM_REPEATS):
        started_s = time.perf_counter()
        runner.launch(batch)
        total_ms = (time.perf_counter() - started_s) * 1000
        if not best or total_ms < best["whole step"]:
            best = _by_kind(np.diff(runner.phase_ends()) * ms_per_cycle, total_ms)
    return best


def _by_kind(spans_ms: np.ndarray, total_ms: float) -> dict[str, float]:
    """`spans_ms` has every phase but the first, the embedding."""
    layers = spans_ms[:-2].reshape(-1, len(PHASES_OF_A_LAYER)).sum(axis=0)
    kinds = dict(zip(PHASES_OF_A_LAYER, (float(value) for value in layers), strict=True))
    kinds["output head"] = float(spans_ms[-2:].sum())
    kinds["all else (sampling, Python)"] = total_ms - float(spans_ms.sum())
    kinds["whole step"] = total_ms
    return kinds


def _ms_per_cycle(runner: NativeRunner, batch: Batch) -> float:
    """From the ends of two steps, some time apart."""
    runner.launch(batch)
    first, started_s = runner.phase_ends()[-1], time.perf_counter()
    time.sleep(0.3)
    runner.launch(batch)
    return (time.perf_counter() - started_s) * 1000 / float(runner.phase_ends()[-1] - first)


def _batch(num_seqs: int, num_computed: int, num_new_tokens: int) -> Batch:
    """Sequences of one length that each compute the same number of new tokens."""
    num_blocks = -(-(num_computed + num_new_tokens) // BLOCK)
    scheduled = []
    for index in range(num_seqs):
        tokens = tuple(
            (index * 31 + position * 7) % 1000 + 3 for position in range(num_computed + num_new_tokens)
        )
        request = GenerationRequest(
            request_id=str(index),
            prompt_token_ids=tokens,
            sampling=SamplingParams(max_tokens=8, temperature=0.0),
        )
        sequence = Sequence(request, arrival=index, max_num_tokens=len(tokens) + 8)
        sequence.block_ids = list(range(index * num_blocks, (index + 1) * num_blocks))
        scheduled.append(ScheduledSequence(sequence, num_computed, num_new_tokens, samples=True))
    return Batch(scheduled=tuple(scheduled), preempted=())


if __name__ == "__main__":
    main()
