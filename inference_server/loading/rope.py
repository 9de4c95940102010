"""Rotary embeddings that look at the whole batch are fixed at load to the engine's context length.

"dynamic" and "longrope" scaling choose their frequencies by the longest position in the batch: one long
request would change every other request's positions and make cached keys inconsistent.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

_BATCH_DEPENDENT = ("dynamic", "longrope")
logger = logging.getLogger(__name__)


def freeze_batch_dependent_rope(model: nn.Module, max_model_len: int) -> int:
    """Fix the frequencies of every rotary module that would change them; returns how many were fixed."""
    frozen = 0
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, dict):
            for layer_type, kind in list(rope_type.items()):
                if kind in _BATCH_DEPENDENT:
                    _fix(module, max_model_len, kind, prefix=f"{layer_type}_", layer_type=layer_type)
                    rope_type[layer_type] = "default"
                    frozen += 1
        elif rope_type in _BATCH_DEPENDENT:
            _fix(module, max_model_len, str(rope_type), prefix="", layer_type=None)
            module.rope_type = "default"  # type: ignore[assignment]
            frozen += 1
    if frozen:
        logger.info("fixed %d batch-dependent rotary embeddings at %d positions", frozen, max_model_len)
    return frozen


def _fix(module: Any, max_model_len: int, kind: str, *, prefix: str, layer_type: str | None) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    name = f"{prefix}inv_freq"
    buffer = getattr(module, name)
    extra = {} if layer_type is None else {"layer_type": layer_type}
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](
        module.config, buffer.device, seq_len=max_model_len, **extra
    )
    if inv_freq.shape == buffer.shape:
        buffer.copy_(inv_freq)
    else:
        setattr(module, name, inv_freq)
    setattr(module, f"{prefix}attention_scaling", scaling)
