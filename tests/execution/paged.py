"""A paged cache with known sequences in it, and plain float64 attention over the same numbers.

Every block that a step may not read is full of NaN, so that reading one shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch

from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.attention.sdpa import SdpaBackend
from inference_server.execution.inputs import InputBuilder, StepInput
from inference_server.execution.kv_cache import LayerCache, LayerShape
from inference_server.execution.rows import SampleRow
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.sequence import Sequence
from inference_server.types import GenerationRequest, SamplingParams

BLOCK_SIZE = 4
CPU = torch.device("cpu")


def make_sequence(
    token_ids: Seq[int], *, num_prompt_tokens: int | None = None, name: str = "r", **sampling: object
) -> Sequence:
    """A sequence with these tokens, of which those after `num_prompt_tokens` are output."""
    cut = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
    params = SamplingParams(**({"max_tokens": 100} | sampling))  # type: ignore[arg-type]
    request = GenerationRequest(request_id=name, prompt_token_ids=tuple(token_ids[:cut]), sampling=params)
    sequence = Sequence(request, arrival=0, max_num_tokens=10_000)
    for token in token_ids[cut:]:
        sequence.append(token)
    return sequence


def make_row(token_ids: Seq[int], **settings: Any) -> SampleRow:
    """The row that chooses the next token of such a sequence."""
    sequence = make_sequence(token_ids, **settings)
    return SampleRow(sequence, sequence.num_tokens)


def schedule(spans: Seq[tuple[int, int]], num_blocks: int, seed: int = 0) -> Batch:
    """A batch with one sequence per (start, num_new_tokens), over shuffled blocks."""
    free = list(range(num_blocks))
    random.Random(seed).shuffle(free)
    scheduled = []
    for number, (start, num_new) in enumerate(spans):
        total = start + num_new
        sequence = make_sequence([(7 * number + i) % 50 for i in range(total)], name=f"r{number}")
        sequence.block_ids = [free.pop() for _ in range(-(-total // BLOCK_SIZE))]
        scheduled.append(ScheduledSequence(sequence, start, num_new, True))
    return Batch(scheduled=tuple(scheduled), preempted=())


@dataclass(frozen=True)
class Shapes:
    """Sizes of one attention layer, and what modifies it."""

    num_heads: int = 4
    num_kv_heads: int = 2
    key_dim: int = 8
    value_dim: int = 8
    window: int | None = None
    softcap: float | None = None
    with_sinks: bool = False


class Layer:
    """One layer in the middle of its life: contexts are stored, the step's tokens are not."""

    def __init__(self, shapes: Shapes, spans: Seq[tuple[int, int]], num_blocks: int = 64) -> None:
        self.shapes, self.spans = shapes, spans
        generator = torch.Generator().manual_seed(17)

        def noise(*dims: int) -> torch.Tensor:
            return torch.randn(dims, generator=generator)

        totals = [start + num_new for start, num_new in spans]
        self.queries = [noise(num_new, shapes.num_heads, shapes.key_dim) for _, num_new in spans]
        self.keys = [noise(total, shapes.num_kv_heads, shapes.key_dim) for total in totals]
        self.values = [noise(total, shapes.num_kv_heads, shapes.value_dim) for total in totals]
        self.sinks = noise(shapes.num_heads) if shapes.with_sinks else None
        batch = schedule(spans, num_blocks)
        layer_shape = LayerShape(shapes.num_kv_heads, shapes.key_dim, shapes.value_dim)
        self.cache = LayerCache(layer_shape, num_blocks, BLOCK_SIZE, torch.float32, CPU)
        self.cache.keys[:-1] = float("nan")
        self.cache.values[:-1] = float("nan")
        self._store_contexts(batch)
        self.step: StepInput = InputBuilder(
            block_size=BLOCK_SIZE, padding_block=num_blocks, device=CPU
        ).build(batch)
        if self.step.fresh_blocks is not None:
            self.cache.clear(self.step.fresh_blocks)

    def _store_contexts(self, batch: Batch) -> None:
        for item, keys, values in zip(batch.scheduled, self.keys, self.values, strict=True):
            if item.start:
                blocks = item.sequence.block_ids
                self.cache.clear(torch.tensor(blocks[: -(-item.start // BLOCK_SIZE)]))
                slots = [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(item.start)]
                self.cache.store(torch.tensor(slots), keys[: item.start], values[: item.start])

    def spoil_unwritten(self) -> None:
        """Fill what the contexts' last blocks do not hold yet, and the padding block, with NaN too."""
        written = torch.zeros(self.cache.keys.shape[:2], dtype=torch.bool)
        for item in schedule(self.spans, self.cache.keys.shape[0] - 1).scheduled:
            for position in range(item.start):
                written[item.sequence.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE] = True
        self.cache.keys[~written] = float("nan")
        self.cache.values[~written] = float("nan")

    def to(self, dtype: torch.dtype) -> None:
        """Compute in another dtype from here on."""
        self.queries, self.keys, self.values = (
            [part.to(dtype) for part in parts] for parts in (self.queries, self.keys, self.values)
        )
        old, (_, _, num_kv_heads, key_dim) = self.cache, self.cache.keys.shape
        shape = LayerShape(num_kv_heads, key_dim, old.values.shape[3])
        self.cache = LayerCache(shape, old.keys.shape[0] - 1, BLOCK_SIZE, dtype, CPU)
        self.cache.keys.copy_(old.keys)
        self.cache.values.copy_(old.values)

    def call(self) -> AttentionCall:
        """The step's tokens, in the order of the batch."""
        new = [slice(start, start + num_new) for start, num_new in self.spans]
        return AttentionCall(
            query=torch.cat(self.queries),
            key=torch.cat([keys[rows] for keys, rows in zip(self.keys, new, strict=True)]),
            value=torch.cat([values[rows] for values, rows in zip(self.values, new, strict=True)]),
            scale=self.shapes.key_dim**-0.5,
            window=self.shapes.window,
            softcap=self.shapes.softcap,
            sinks=self.sinks,
        )

    def attend(self) -> list[torch.Tensor]:
        """What the CPU's backend gives for the step, one tensor per sequence."""
        output = SdpaBackend().attend(self.call(), self.cache, self.step)
        return list(output.split([num_new for _, num_new in self.spans]))

    def expected(self) -> list[torch.Tensor]:
        """The same by definition, token by token and head by head, in float64."""
        return [
            torch.stack([self._token(number, row) for row in range(num_new)])
            for number, (_, num_new) in enumerate(self.spans)
        ]

    def _token(self, number: int, row: int) -> torch.Tensor:
        position = self.spans[number][0] + row
        window = self.shapes.window
        first = 0 if window is None else max(0, position - window + 1)
        heads = []
        for head in range(self.shapes.num_heads):
            kv_head = head * self.shapes.num_kv_heads // self.shapes.num_heads
            keys = self.keys[number][first : position + 1, kv_head].double()
            values = self.values[number][first : position + 1, kv_head].double()
            scores = keys @ self.queries[number][row, head].double() * self.shapes.key_dim**-0.5
            if self.shapes.softcap is not None:
                scores = self.shapes.softcap * torch.tanh(scores / self.shapes.softcap)
            if self.sinks is not None:
                scores = torch.cat([scores, self.sinks[head].double()[None]])
            weights = scores.softmax(dim=-1)[: keys.shape[0]]
            heads.append(weights @ values)
        return torch.stack(heads)
