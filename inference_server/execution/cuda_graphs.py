"""Decode steps as CUDA graphs, one per batch size of a ladder.

A graph replays the kernels of one decode step over fixed tensors: the inputs that a step fills in, the block
table, and the logits and greedy tokens that it leaves. It holds the addresses of weights and cache. All
graphs share one memory pool; the largest is captured first, so that the others find room in it.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn

from inference_server.execution.paged_inputs import NUM_HEAD_PARTS
from inference_server.execution.paged_step import PagedStep, Region
from inference_server.scheduling.batch import INVALID_TOKEN

TOLERANCE = 0.05  # largest accepted difference of replayed from eager logits, in their standard deviations
_SMALL = (1, 2, 4)
Forward = Callable[[PagedStep], torch.Tensor]
logger = logging.getLogger(__name__)


def ladder(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes to capture: 1, 2, 4, then every 8th to 64, 16th to 128 and 32nd up to the largest."""
    sizes = [size for size in _SMALL if size < max_num_seqs]
    size = 8
    while size < max_num_seqs:
        sizes.append(size)
        size += 8 if size < 64 else 16 if size < 128 else 32
    return (*sizes, max_num_seqs)


class Capture(Protocol):
    """Turns a computation over fixed tensors into something that repeats it."""

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Run `compute` at least once; what is returned does the same work again."""


class CudaCapture:
    """Captures into one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        """See `Capture`. The first run compiles kernels and makes workspaces, which a capture may not."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            compute()
        return graph.replay


class DecodeGraphs:
    """The captured sizes and the tensors that they share. Owner: the runner."""

    def __init__(
        self,
        sizes: Iterable[int],
        *,
        forward: Forward,
        block_table: torch.Tensor,
        capture: Capture,
    ) -> None:
        """Capture everything. Raises whatever the first run or the capture raises."""
        self._sizes = sorted(sizes)
        self._forward = forward
        self._block_table = block_table
        largest, device = self._sizes[-1], block_table.device
        self.head = torch.zeros(NUM_HEAD_PARTS * largest, dtype=torch.int32, device=device)
        self.head.view(NUM_HEAD_PARTS, largest)[2] = -1
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        first = forward(self._step(largest))
        self.logits = torch.empty_like(first, memory_format=torch.contiguous_format)
        self.tokens = torch.empty(largest, dtype=torch.int64, device=device)
        del first
        # What is loaded by now lives as long as the process: collections need not look at it again, and
        # each capture makes one.
        gc.collect()
        gc.freeze()
        self._replays: dict[int, Callable[[], None]] = {}
        for size in reversed(self._sizes):
            self._clear(size)
            self._replays[size] = capture(lambda size=size: self._compute(size))  # type: ignore[misc]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Captured sizes, ascending."""
        return tuple(self._sizes)

    @property
    def checked_sizes(self) -> tuple[int, ...]:
        """Sizes whose replays are compared with eager steps: the ends of the ladder."""
        return (self._sizes[0], self._sizes[-1])

    def size_for(self, num_seqs: int) -> int | None:
        """The smallest captured size that holds this many sequences."""
        return next((size for size in self._sizes if size >= num_seqs), None)

    def replay(self, size: int, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute one decode → (logits [size, vocab_size], greedy tokens [size]), valid until the next.

        head [NUM_HEAD_PARTS * size]: see `HostStep.padded_head`.
        """
        self.head[: len(head)].copy_(head)
        self._replays[size]()
        return self.logits[:size], self.tokens[:size]

    def difference(self, size: int, vocab_size: int, num_slots: int) -> float:
        """Largest difference of replayed from eager logits, in standard deviations. Writes to the cache."""
        self._clear(size)
        parts = self.head[: NUM_HEAD_PARTS * size].view(NUM_HEAD_PARTS, size)
        numbers = torch.arange(size, dtype=torch.int32, device=parts.device)
        parts[0] = (numbers * 7 + 3) % vocab_size
        parts[2] = numbers % num_slots
        parts[3] = 1
        eager = self._forward(self._step(size)).float()
        self._replays[size]()
        replayed = self.logits[:size].float()
        self._clear(size)
        return float((replayed - eager).abs().max() / eager.std().clamp(min=1e-6))

    def _clear(self, size: int) -> None:
        """All rows are padding."""
        parts = self.head[: NUM_HEAD_PARTS * size].view(NUM_HEAD_PARTS, size)
        parts.zero_()
        parts[2] = -1

    def _compute(self, size: int) -> None:
        logits = self._forward(self._step(size))
        self.logits[:size].copy_(logits)
        self.tokens[:size].copy_(greedy(logits))

    def _step(self, size: int) -> PagedStep:
        ids, positions, slots, lengths, rows = self.head[: NUM_HEAD_PARTS * size].view(-1, size)
        region = Region(0, size, 1, self._starts[: size + 1], lengths, rows)
        return PagedStep(
            input_ids=ids.long()[None],
            position_ids=positions.long()[None],
            slots=slots,
            block_table=self._block_table,
            decodes=region,
            chunks=None,
            cold=None,
            sample_rows=None,
        )


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The largest logit of each row → [num_rows]; `INVALID_TOKEN` where they are not finite."""
    return torch.where(logits.amax(dim=-1).isfinite(), logits.argmax(dim=-1), INVALID_TOKEN)


def why_not_capturable(model: nn.Module, config: Any) -> str | None:
    """Why a model's decode step cannot be captured, or None: whatever waits for the device rules it out."""
    for module in model.modules():
        state: Any = getattr(module, "state", None)
        if type(module).__name__ == "Linear8bitLt" and state is not None and state.threshold != 0.0:
            return "its int8 layers look for outliers in each step"
    num_experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if num_experts and getattr(config, "_experts_implementation", None) not in ("grouped_mm", "batched_mm"):
        return "its experts are chosen on the host"
    return None


@torch.inference_mode()
def capture_decodes(
    sizes: Iterable[int],
    *,
    forward: Forward,
    block_table: torch.Tensor,
    vocab_size: int,
    num_slots: int,
    capture: Capture,
) -> DecodeGraphs | None:
    """Graphs that give what eager steps give, or None, with the reason in the log: then steps run eagerly."""
    try:
        graphs = DecodeGraphs(sizes, forward=forward, block_table=block_table, capture=capture)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.warning("decode steps run eagerly: capturing them failed (%s)", error)
        return None
    worst = max(graphs.difference(size, vocab_size, num_slots) for size in graphs.checked_sizes)
    if not worst <= TOLERANCE:
        logger.warning("decode steps run eagerly: replayed logits differ by %.3g", worst)
        return None
    logger.info("captured decode steps of %s sequences", ", ".join(map(str, graphs.sizes)))
    return graphs
