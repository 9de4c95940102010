"""Computes steps on a GPU without waiting for it: upload, forward (a graph or eager), choice, download.

A launch only queues work, so the next batch can be scheduled and launched while this one is computed; a
token that the step before is still choosing is taken over on the device. Owner of the model, its KV cache
and everything else on the device; used by the engine's thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch

from inference_server.execution.attention.binding import StepSlot
from inference_server.execution.block_tables import BlockTables
from inference_server.execution.cuda_graphs import DecodeGraphs, greedy
from inference_server.execution.paged_inputs import HostStep, PagedInputs, paged_step
from inference_server.execution.paged_step import PagedStep
from inference_server.execution.pending import DeviceStep
from inference_server.execution.rows import SampleRow, sample_rows
from inference_server.execution.runner import is_fatal
from inference_server.execution.sampler import Sampler
from inference_server.execution.scoring import plan_scores, score
from inference_server.execution.upload import upload
from inference_server.scheduling.batch import Batch

_NO_INTS = np.empty(0, dtype=np.int32)


class CudaRunner:
    """A `StepRunner` over a transformers model whose attention layers run the CUDA backend."""

    max_in_flight = 2

    def __init__(
        self,
        model: Any,
        *,
        slot: StepSlot[PagedStep],
        sampler: Sampler,
        tables: BlockTables,
        block_size: int,
        vocab_size: int,
        device: torch.device,
        selects_rows: bool,
        cold_from: int | None,
    ) -> None:
        """`selects_rows`: whether the model takes `logits_to_keep` as a tensor of row indices."""
        self._model = model
        self._slot = slot
        self._sampler = sampler
        self._tables = tables
        self._vocab_size = vocab_size
        self._device = device
        self._selects_rows = selects_rows
        self._inputs = PagedInputs(tables, block_size=block_size, cold_from=cold_from)
        self._last_tokens = torch.empty(0, dtype=torch.int64, device=device)  # of the step launched last
        self._last_rows: dict[str, int] = {}  # request → its row in them
        self.graphs: DecodeGraphs | None = None  # steps run eagerly while there are none
        self._capture: Callable[[], DecodeGraphs | None] = _no_graphs

    def capture_with(self, capture: Callable[[], DecodeGraphs | None]) -> None:
        """Capture the decode steps, now and whenever their addresses have changed."""
        self._capture = capture
        self.graphs = capture()

    def release(self) -> None:
        """Let go of what refers to memory on the device that is about to be given back."""
        self.graphs = None
        self._last_tokens = self._last_tokens[:0].clone()
        self._last_rows = {}
        self._tables.reset()

    def restore(self) -> None:
        """Be as before `release`, over weights and a KV cache at other addresses."""
        self.graphs = self._capture()

    @torch.inference_mode()
    def launch(self, batch: Batch) -> DeviceStep:
        """See `StepRunner.launch`."""
        try:
            return self._launch(batch)
        except Exception:
            self._tables.reset()
            self._last_rows = {}
            raise

    def is_fatal(self, error: Exception) -> bool:
        """See `StepRunner.is_fatal`."""
        return is_fatal(error)

    def forward(self, step: PagedStep) -> torch.Tensor:
        """Logits of `step.sample_rows` → [num_samples, vocab_size]."""
        arguments: dict[str, Any] = {"input_ids": step.input_ids, "position_ids": step.position_ids}
        selects = self._selects_rows and step.sample_rows is not None
        if selects:
            arguments["logits_to_keep"] = step.sample_rows
        self._slot.step = step
        try:
            logits: torch.Tensor = self._model(**arguments, use_cache=False).logits[0]
        finally:
            self._slot.step = None
        if selects or step.sample_rows is None:
            return logits
        return logits.index_select(0, step.sample_rows)

    def _launch(self, batch: Batch) -> DeviceStep:
        host = self._inputs.plan(batch, self._last_rows)
        rows = sample_rows(batch)
        plan = self._sampler.plan(rows, self._vocab_size)
        scoring = plan_scores(batch, rows)
        score_ints = _NO_INTS if scoring is None else scoring.ints()
        size = self.graphs.size_for(host.num_seqs) if self.graphs is not None and host.is_decode else None
        head = host.head if size is None else host.padded_head(size)
        arrays = [head, *host.arrays(), plan.ints(), score_ints]
        ints, floats = upload(arrays, plan.floats(), self._device)
        there, sources, chosen_rows, query_starts, places, values, plan_ints, scored = ints
        self._tables.apply(places, values)
        input_ids = self._carry(there[: host.num_tokens], sources)
        if size is None:
            step = paged_step(host, there, input_ids, query_starts, chosen_rows, self._tables.device)
            logits = self.forward(step)
            tokens = greedy(logits[: len(rows)]) if plan.is_greedy else None
        else:
            logits, tokens = self._replay(size, there, host, chosen_rows)
            tokens = tokens[: len(rows)]
        if tokens is None or not plan.is_greedy:
            last_tokens = input_ids[chosen_rows[: len(rows)].long()]
            tokens = self._sampler.choose(logits[: len(rows)], plan, plan_ints, floats, last_tokens)
        self._remember(rows, tokens)
        if scoring is None:
            return DeviceStep(batch, tokens)
        return DeviceStep(batch, tokens, scoring, score(logits, scoring, scored, tokens))

    def _carry(self, input_ids: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
        """Put the tokens that the last step chose where the host did not know them; in place."""
        if len(sources):
            known = self._last_tokens[sources.clamp(min=0).long()].clamp(min=0).to(input_ids.dtype)
            input_ids.copy_(torch.where(sources >= 0, known, input_ids))
        return input_ids

    def _replay(
        self, size: int, head: torch.Tensor, host: HostStep, chosen_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.graphs is not None
        logits, tokens = self.graphs.replay(size, head)
        if host.samples_every_row:
            return logits[: host.num_tokens], tokens[: host.num_tokens]
        wanted = chosen_rows.long()
        return logits.index_select(0, wanted), tokens.index_select(0, wanted)

    def _remember(self, rows: Seq[SampleRow], tokens: torch.Tensor) -> None:
        """What drafts led to is not taken over: only the host knows which of those rows counts."""
        self._last_tokens = tokens
        self._last_rows = {row.sequence.request_id: number for number, row in enumerate(rows)}
        for row in rows:
            if row.drafts:
                self._last_rows.pop(row.sequence.request_id, None)


def _no_graphs() -> None:
    return None
