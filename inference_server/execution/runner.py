"""Computes a step: inputs → one forward pass over the flat ragged batch → new tokens per sampling sequence.

Owner of the model, its KV cache and everything else on the device; used by the engine's thread only.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch

from inference_server.execution.attention.binding import LayerBinding, StepSlot, bind
from inference_server.execution.attention.contract import AttentionBackend, StepT
from inference_server.execution.choice import finish_step
from inference_server.execution.inputs import InputBuilder, StepInput
from inference_server.execution.kv_cache import KVCache
from inference_server.execution.rows import lone_prompt
from inference_server.execution.sampler import Sampler
from inference_server.loading.loader import storages
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import FinishedStep

logger = logging.getLogger(__name__)


class Runner:
    """A `StepRunner` over a transformers model whose attention layers are bound to a paged cache.

    A launched step is a finished one: for devices that compute while the host waits.
    """

    max_in_flight = 1

    def __init__(
        self,
        model: Any,
        *,
        cache: KVCache,
        slot: StepSlot[StepInput],
        sampler: Sampler,
        device: torch.device,
        selects_rows: bool,
    ) -> None:
        """`selects_rows`: whether the model takes `logits_to_keep` as a tensor of row indices."""
        self._model = model
        self._cache = cache
        self._slot = slot
        self._sampler = sampler
        self._selects_rows = selects_rows
        self._inputs = InputBuilder(
            block_size=cache.block_size, padding_block=cache.padding_block, device=device
        )

    @property
    def kv_regions(self) -> list[tuple[int, int]]:
        """Address and bytes of the memory that keys and values lie in."""
        return self._cache.regions

    @property
    def weight_regions(self) -> list[tuple[int, int]]:
        """Address and bytes of the memory that the weights lie in."""
        return [(storage.data_ptr(), storage.nbytes()) for storage in storages(self._model)]

    @torch.inference_mode()
    def launch(self, batch: Batch) -> FinishedStep:
        """See `StepRunner.launch`."""
        step = self._inputs.build(batch)
        if step.fresh_blocks is not None:
            self._cache.clear(step.fresh_blocks)
        return finish_step(batch, self.forward(step), self._sampler)

    @torch.inference_mode()
    def prompt_logits(self, token_ids: Seq[int]) -> np.ndarray:
        """Logits after each token of a text, float32 [num_tokens, vocab_size]; for tests and measurements.

        Overwrites the first blocks of the KV cache, which must hold the text.
        """
        scheduled = lone_prompt(token_ids, self._cache.block_size)
        step = self._inputs.build(Batch(scheduled=(scheduled,), preempted=()))
        rows = torch.arange(len(token_ids), device=step.input_ids.device)
        logits = self.forward(dataclasses.replace(step, sample_rows=rows))
        return logits.float().cpu().numpy()

    def forward(self, step: StepInput) -> torch.Tensor:
        """Logits of `step.sample_rows` → [num_samples, vocab_size]."""
        arguments: dict[str, Any] = {"input_ids": step.input_ids, "position_ids": step.position_ids}
        if self._selects_rows:
            arguments["logits_to_keep"] = step.sample_rows
        self._slot.step = step
        try:
            logits: torch.Tensor = self._model(**arguments, use_cache=False).logits[0]
        finally:
            self._slot.step = None
        return logits if self._selects_rows else logits.index_select(0, step.sample_rows)

    def is_fatal(self, error: Exception) -> bool:
        """See `StepRunner.is_fatal`."""
        return is_fatal(error)


def is_fatal(error: Exception) -> bool:
    """A CUDA error other than running out of memory leaves the context unusable."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def bind_layers(
    layers: Seq[Any], cache: KVCache, backend: AttentionBackend[StepT], slot: StepSlot[StepT]
) -> None:
    """Give each attention layer (a `LayerFacts`, in order) its part of the cache."""
    for facts, layer_cache in zip(layers, cache.layers, strict=True):
        for module in facts.modules:
            bind(module, LayerBinding(layer_cache, backend, slot, facts.window))
