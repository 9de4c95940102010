"""One step as CUDA kernels read it: every length stands in a device tensor, every size is a plain number.

A step's rows are its new tokens, sequence after sequence, in up to three regions: sequences with one new
token, longer chunks, and cold chunks (those with nothing before them). A captured graph has one region of
decodes, and what varies from replay to replay stands in its tensors alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Region:
    """Consecutive sequences of one kind, whose new tokens are rows [first_row, last_row) of the step.

    A sequence of `kv_lengths` 0 is padding: it is neither read nor written.
    """

    first_row: int
    last_row: int
    max_query_len: int  # new tokens of the longest
    query_starts: torch.Tensor  # [num_seqs + 1] int32, counted from `first_row`
    kv_lengths: torch.Tensor  # [num_seqs] int32, tokens including the new ones
    table_rows: torch.Tensor  # [num_seqs] int32, rows of the block table

    @property
    def num_seqs(self) -> int:
        """Sequences, padding included."""
        return self.kv_lengths.shape[0]


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Everything that a forward pass needs to know of its batch."""

    input_ids: torch.Tensor  # [1, num_tokens] int64
    position_ids: torch.Tensor  # [1, num_tokens] int64
    slots: torch.Tensor  # [num_tokens] int32, where each token's key and value go; negative: nowhere
    block_table: torch.Tensor  # [num_rows, width] int32
    decodes: Region | None
    chunks: Region | None
    cold: Region | None
    sample_rows: torch.Tensor | None  # [num_samples] int64, rows whose logits are wanted; None: all
