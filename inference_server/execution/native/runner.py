"""Computes a step on the CPU with the native kernels: batch → one compiled call → logits → tokens.

Owner of the packed model, its KV cache, the scratch memory and the threads; used by the engine's thread only.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from inference_server.execution.choice import finish_step
from inference_server.execution.native.attention import CHUNK, MAX_TASK_ROWS
from inference_server.execution.native.batches import build_batch
from inference_server.execution.native.kernels import Step, warm_up
from inference_server.execution.native.model import BLOCK, ROWS, Batch, Model, Scratch
from inference_server.execution.native.step import num_phases
from inference_server.execution.native.team import Team, new_counters, phase_ends
from inference_server.execution.native.tiles import GROUP, PANEL
from inference_server.execution.rows import lone_prompt
from inference_server.execution.sampler import Sampler
from inference_server.scheduling.batch import Batch as ScheduledBatch
from inference_server.scheduling.pending import FinishedStep

_PAGE_FLOATS = 1024  # rows a multiple of this apart fall into the same few lines of the first-level cache


class NativeRunner:
    """A `StepRunner` over the native kernels. A launched step is a finished one."""

    max_in_flight = 1

    def __init__(
        self,
        model: Model,
        step: Step,
        *,
        vocab_size: int,
        num_blocks: int,
        kv_dtype: torch.dtype,
        max_num_batched_tokens: int,
        num_threads: int,
        sampler: Sampler,
    ) -> None:
        """`kv_dtype`: float32 or bfloat16."""
        self._model = model
        self._step = step
        self._vocab_size = vocab_size
        self._num_blocks = num_blocks
        self._sampler = sampler
        self._group_size = model.num_heads // model.num_kv_heads
        self._kv_type: type = np.float32 if kv_dtype == torch.float32 else np.uint16
        self._max_rows = max_num_batched_tokens
        self._padded_vocab = -(-int(model.matrices[model.head, ROWS]) // PANEL) * PANEL
        self._allocate(num_threads)
        self._counters = new_counters(num_phases(len(model.layers)))
        self._team = Team(num_threads)

    def _allocate(self, num_threads: int) -> None:
        """All that a step writes. `_logits` grows to the most rows of any step."""
        model = self._model
        per_layer = self._num_blocks * model.num_kv_heads * 2 * model.head_dim * BLOCK
        self._cache: np.ndarray = np.empty(len(model.layers) * per_layer, dtype=self._kv_type)
        self._scratch = new_scratch(model, self._max_rows, num_threads)
        self._logits = np.empty((0, self._padded_vocab), dtype=np.float32)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the packed weights and their tables."""
        return self._model.num_bytes

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._cache.nbytes

    @property
    def kv_regions(self) -> list[tuple[int, int]]:
        """Address and bytes of the memory that keys and values lie in."""
        return [(self._cache.ctypes.data, self._cache.nbytes)]

    @property
    def weight_regions(self) -> list[tuple[int, int]]:
        """Address and bytes of the memory that the packed weights lie in."""
        arrays = (self._model.arena, self._model.vectors, self._model.rope)
        return [(array.ctypes.data, array.nbytes) for array in arrays]

    @property
    def workspace_bytes(self) -> int:
        """Bytes of everything else that a step writes, once a largest step has touched it all."""
        return sum(array.nbytes for array in self._scratch) + self._logits.nbytes

    def launch(self, batch: ScheduledBatch) -> FinishedStep:
        """See `engine.contract.StepRunner.launch`."""
        step = build_batch(batch.scheduled, self._group_size)
        if step.sample_rows.size > len(self._logits):
            self._logits = np.empty((step.sample_rows.size, self._logits.shape[1]), dtype=np.float32)
        logits = torch.from_numpy(self._forward(step, self._logits)[:, : self._vocab_size])
        return finish_step(batch, logits, self._sampler)

    def is_fatal(self, error: Exception) -> bool:
        """A failed step leaves nothing behind that a later one could not overwrite."""
        return False

    def prompt_logits(self, token_ids: Seq[int]) -> np.ndarray:
        """Logits after each token of a text, [num_tokens, vocab_size]; for tests and measurements.

        Overwrites the first blocks of the KV cache. The text must fit in one step and in the cache.
        """
        batch = build_batch([lone_prompt(token_ids, BLOCK)], self._group_size)
        batch = batch._replace(sample_rows=np.arange(len(token_ids)))
        out = np.empty((len(token_ids), self._logits.shape[1]), dtype=np.float32)
        return self._forward(batch, out)[:, : self._vocab_size]

    def phase_ends(self) -> np.ndarray:
        """When each phase of the last step ended, in processor cycles; see `step.PHASES_OF_A_LAYER`."""
        ends = phase_ends(self._counters)
        return ends[ends > 0]

    def warm_up(self) -> None:
        """Compile the kernels, or read them from their cache; says so in the log."""
        warm_up(self._step, lambda: self.prompt_logits([0]))

    def release(self) -> None:
        """Give the memory of weights, KV cache and scratch back; only `restore` may follow."""
        self._model = self._model._replace(arena=np.empty(0, dtype=np.uint8))
        self._cache = np.empty(0, dtype=self._kv_type)
        self._scratch = new_scratch(self._model, 0, self._team.num_threads)
        self._logits = np.empty((0, self._padded_vocab), dtype=np.float32)
        self._team.forget()

    def restore(self, arena: np.ndarray) -> None:
        """Hold these weights again, which are those that were released, and a KV cache of unknown content."""
        self._model = self._model._replace(arena=arena)
        self._allocate(self._team.num_threads)

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def _forward(self, batch: Batch, out: np.ndarray) -> np.ndarray:
        """Logits of `batch.sample_rows`, written into the first rows of `out`."""
        logits = out[: batch.sample_rows.size]
        self._counters.fill(0)
        model, scratch, cache, counters = self._model, self._scratch, self._cache, self._counters
        num_blocks, step, num_threads = self._num_blocks, self._step, self._team.num_threads
        self._team.run(
            lambda thread: step(
                model, batch, scratch, cache, num_blocks, logits, counters, thread, num_threads
            )
        )
        return logits


def new_scratch(model: Model, max_rows: int, num_threads: int) -> Scratch:
    """Memory for steps of at most `max_rows` tokens; pages that no step needs are never touched."""
    attention_width = model.num_heads * model.head_dim
    widest = max(model.hidden_size, attention_width, model.intermediate_size)
    task_rows = max(MAX_TASK_ROWS, model.num_heads // model.num_kv_heads)

    def rows(width: int, dtype: type = np.float32) -> np.ndarray:
        return np.empty((max_rows, width), dtype=dtype)

    def per_thread(size: int) -> np.ndarray:
        return np.zeros((num_threads, size), dtype=np.float32)

    return Scratch(
        hidden=rows(_stride(model.hidden_size)),
        branch=rows(_stride(model.hidden_size)),
        inputs=rows(_stride(widest)),
        quantized=rows(_stride(widest), np.int16),
        factors=np.empty(max_rows, dtype=np.float32),
        sums=rows(widest // GROUP),
        qkv=rows(_stride(attention_width + 2 * model.num_kv_heads * model.head_dim)),
        attention=rows(_stride(attention_width)),
        gate_up=rows(_stride(2 * model.intermediate_size)),
        queries=per_thread(task_rows * model.head_dim),
        scores=per_thread(task_rows * CHUNK),
        values=per_thread(task_rows * model.head_dim),
        maxima=per_thread(2 * task_rows),
    )


def _stride(width: int) -> int:
    """Numbers from one row to the next."""
    padded = -(-width // PANEL) * PANEL
    return padded + PANEL if padded % _PAGE_FLOATS == 0 else padded
