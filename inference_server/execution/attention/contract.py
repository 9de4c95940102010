"""What a layer asks of an attention backend, and what every backend promises.

Source of the calling convention: transformers' `AttentionInterface`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from inference_server.execution.kv_cache import LayerCache

# What a backend needs to know of a step: `inputs.StepInput` or `paged_step.PagedStep`.
StepT = TypeVar("StepT")
StepT_contra = TypeVar("StepT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's attention in one step.

    query [num_tokens, num_heads, key_dim]; key [num_tokens, num_kv_heads, key_dim];
    value [num_tokens, num_kv_heads, value_dim]; rotary embedding and q/k norms are already applied, heads are
    not repeated. `window` counts the current token: position q sees k with q - window < k <= q.
    `sinks` [num_heads] are extra logits that take part in the softmax and attend to nothing.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class AttentionBackend(Protocol[StepT_contra]):
    """Stores the step's keys and values, then attends."""

    def attend(self, call: AttentionCall, cache: LayerCache, step: StepT_contra) -> torch.Tensor:
        """Causal attention of each sequence to itself only → [num_tokens, num_heads, value_dim]."""
