"""Top-p on a GPU: the filter that never waits for the device."""

from __future__ import annotations

import torch

from inference_server.execution.triton_kernels import nucleus as kernels

_TILE = 4096


def keep_top_p_on_device(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """As `logits.keep_top_p`: a `NucleusFilter`. logits [num_rows, vocab_size] float32, top_p [num_rows]."""
    logits = logits.contiguous()
    num_rows, vocab_size = logits.shape
    thresholds = logits.new_empty(num_rows)
    kernels.nucleus_thresholds[(num_rows,)](logits, top_p.float(), thresholds, vocab_size, TILE=_TILE)
    return logits.masked_fill(logits < thresholds[:, None], float("-inf"))
