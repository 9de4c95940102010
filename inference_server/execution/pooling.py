"""From the states of an input's tokens to one vector: the poolings of sentence-transformers, as functions.

Each takes states [num_inputs, max_len, hidden] and mask [num_inputs, max_len, 1] (1 for a token, 0 for the
padding behind it; floats of the states' dtype) and gives [num_inputs, hidden].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor


def pool(states: Tensor, mask: Tensor, poolings: Seq[str]) -> Tensor:
    """The poolings of these names (`checkpoints/sentence.py`, `POOLINGS`), one after the other in a row."""
    return torch.cat([_POOLINGS[name](states, mask) for name in poolings], dim=1)


def _cls(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask == 0, -torch.inf).amax(dim=1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(dim=1) / mask.sum(dim=1)


def _mean_sqrt_len(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(dim=1) / mask.sum(dim=1).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Later tokens weigh more (SGPT, arXiv 2202.08904)."""
    positions = torch.arange(1, mask.shape[1] + 1, dtype=states.dtype, device=states.device)
    weights = mask * positions[None, :, None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _last_token(states: Tensor, mask: Tensor) -> Tensor:
    last = mask[:, :, 0].sum(dim=1).long() - 1
    return states[torch.arange(states.shape[0], device=states.device), last]


_POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
