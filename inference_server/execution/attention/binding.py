"""How transformers' attention modules reach our backends.

transformers calls one registered function with the attention module as its first argument. Each module
carries its own `LayerBinding`; nothing travels in keyword arguments (some families drop them) and nothing
is global but the registration itself.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol

import torch
from torch import nn
from transformers import AttentionInterface

from inference_server.execution.attention.contract import AttentionBackend, AttentionCall, StepT
from inference_server.execution.kv_cache import LayerCache

INTERFACE_NAME = "helixflow"
_ATTRIBUTE = "helixflow_binding"


class Binding(Protocol):
    """What an attention module calls."""

    def __call__(self, call: AttentionCall, mask: torch.Tensor | None, extra: dict[str, Any]) -> torch.Tensor:
        """→ [num_tokens, num_heads, value_dim]. `extra` holds the keyword arguments we do not know."""


class StepSlot(Generic[StepT]):
    """Holds the step that is being computed. Owner: the runner; read by every layer's binding."""

    def __init__(self) -> None:
        self.step: StepT | None = None


class LayerBinding(Generic[StepT]):
    """One layer's way to its cache, its backend and the current step."""

    def __init__(
        self,
        cache: LayerCache,
        backend: AttentionBackend[StepT],
        slot: StepSlot[StepT],
        window: int | None,
    ) -> None:
        self._cache = cache
        self._backend = backend
        self._slot = slot
        self._window = window

    def __call__(self, call: AttentionCall, mask: torch.Tensor | None, extra: dict[str, Any]) -> torch.Tensor:
        """See `Binding`."""
        if self._slot.step is None:
            raise RuntimeError("an attention layer ran outside a step")
        if call.window is None and self._window is not None:
            call = AttentionCall(
                call.query, call.key, call.value, call.scale, self._window, call.softcap, call.sinks
            )
        return self._backend.attend(call, self._cache, self._slot.step)


def register() -> None:
    """Make `attn_implementation="helixflow"` known to transformers. Idempotent.

    No mask function is registered under the name: that is what stops transformers from building masks.
    """
    AttentionInterface.register(INTERFACE_NAME, attention_function)


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that may call the attention interface: whatever knows its layer."""
    return [module for module in model.modules() if hasattr(module, "layer_idx")]


def bind(module: nn.Module, binding: Binding) -> None:
    """Give a module its binding (kept out of the module's parameters and state)."""
    object.__setattr__(module, _ATTRIBUTE, binding)


def attention_function(
    module: nn.Module,
    query: torch.Tensor,  # [1, num_heads, num_tokens, key_dim]
    key: torch.Tensor,  # [1, num_kv_heads, num_tokens, key_dim]
    value: torch.Tensor,  # [1, num_kv_heads, num_tokens, value_dim]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function → ([1, num_tokens, num_heads, value_dim], None)."""
    call = AttentionCall(
        query=query[0].transpose(0, 1),
        key=key[0].transpose(0, 1),
        value=value[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    binding: Binding = getattr(module, _ATTRIBUTE)
    return binding(call, attention_mask, extra)[None], None
