"""The CUDA runner on the CPU: kernels interpreted, graphs stood in for by the computations themselves.

Drives batches as an engine does, one or two steps in flight, over sequences that it schedules itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import torch

from inference_server.execution.admission import probe
from inference_server.execution.attention.binding import INTERFACE_NAME, register
from inference_server.execution.cuda_graphs import DecodeGraphs
from inference_server.execution.cuda_runner import CudaRunner
from inference_server.execution.cuda_setup import prepare_for_cuda, set_up_cuda
from inference_server.execution.kv_cache import KVCache
from inference_server.execution.pending import DeviceStep
from inference_server.loading.loader import load_model
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.sequence import Sequence

CPU = torch.device("cpu")
BLOCK_SIZE = 16
NUM_BLOCKS = 64
MAX_NUM_SEQS = 6


def again(compute: Callable[[], None]) -> Callable[[], None]:
    """A capture that repeats the computation: what it reads and writes is what a graph would."""
    compute()
    return compute


def make_runner(folder: Path, *, with_graphs: bool, is_fused: bool = False) -> CudaRunner:
    """A CUDA runner over a tiny model in float32; one per model, as interpreting takes its time."""
    runner, graphs = _shared_runner(folder, is_fused)
    runner.graphs = graphs if with_graphs else None
    return runner


@functools.cache
def _shared_runner(folder: Path, is_fused: bool) -> tuple[CudaRunner, DecodeGraphs]:
    runner = build_runner(folder, is_fused=is_fused)
    assert runner.graphs is not None
    return runner, runner.graphs


def build_runner(folder: Path, *, is_fused: bool = False) -> CudaRunner:
    """A runner that no other test has."""
    register()
    loaded = load_model(
        folder,
        device="cpu",
        dtype="float32",
        quantization="none",
        max_model_len=256,
        attention=INTERFACE_NAME,
    )
    if is_fused:
        prepare_for_cuda(loaded)
    layers = probe(loaded.model, loaded.config, CPU, torch.float32)
    cache = KVCache(
        [layer.shape for layer in layers],
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        dtype=torch.float32,
        device=CPU,
    )
    runner = set_up_cuda(
        loaded,
        layers,
        cache,
        max_num_seqs=MAX_NUM_SEQS,
        max_model_len=64,
        salt=b"salt",
        capture=again,
    )
    assert runner is not None
    return runner


@dataclass
class Run:
    """Sequences on their way through a runner. `depth` steps may be in flight."""

    runner: CudaRunner
    depth: int = 1
    in_flight: list[tuple[Batch, DeviceStep]] = field(default_factory=list)
    computed: dict[str, int] = field(default_factory=dict)
    owed: dict[str, int] = field(default_factory=dict)  # tokens in flight per request
    free: list[int] = field(default_factory=lambda: list(range(NUM_BLOCKS)))

    def generate(self, sequences: Seq[Sequence], *, chunk: int = 1000) -> dict[str, list[int]]:
        """All output tokens of each sequence, `sampling.max_tokens` of them."""
        while True:
            items = [item for sequence in sequences if (item := self._next(sequence, chunk)) is not None]
            if items:
                batch = Batch(scheduled=tuple(items), preempted=())
                self.in_flight.append((batch, self.runner.launch(batch)))
            if not items and not self.in_flight:
                return {s.request_id: list(s.output_token_ids) for s in sequences}
            if len(self.in_flight) >= self.depth or not items:
                self._commit()

    def _next(self, sequence: Sequence, chunk: int) -> ScheduledSequence | None:
        name = sequence.request_id
        start, owed = self.computed.get(name, 0), self.owed.get(name, 0)
        known = sequence.num_tokens + owed
        num_new = min(chunk, known - start)
        if num_new <= 0 or known >= sequence.max_num_tokens:
            return None
        while len(sequence.block_ids) * BLOCK_SIZE < start + num_new:
            sequence.block_ids.append(self.free.pop(len(sequence.block_ids) * 7 % len(self.free)))
        samples = start + num_new == known
        self.computed[name] = start + num_new
        self.owed[name] = owed + samples
        return ScheduledSequence(sequence, start, num_new, samples, carries=start >= sequence.num_tokens)

    def _commit(self) -> None:
        batch, pending = self.in_flight.pop(0)
        for item, tokens in zip(batch.sampling, pending.tokens(), strict=True):
            self.owed[item.sequence.request_id] -= 1
            for token in tokens:
                item.sequence.append(token)
