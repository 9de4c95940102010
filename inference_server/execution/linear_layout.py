"""Memory layouts of weight matrices that the CPU's float32 GEMM is fast with. Values never change.

`F.linear(x, W)` hands MKL the transpose of a row-major W. For 2–63 rows that path is 2–6 times slower than
the same product with W stored input-major (measured: benchmarks/RESULTS.md), so weights are stored that way
and shown through a transposed view: no extra memory, no changed module. A weight that is also the embedding
must stay row-major for its lookups; its product is computed as (W xᵀ)ᵀ instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_FEW_ROWS = 2  # one row is a matrix-vector product, fast in any layout
_MANY_ROWS = 64  # from here on both layouts measured the same


def optimise_linear_layout(model: nn.Module) -> int:
    """Re-lay every float32 CPU `nn.Linear` of `model`; returns how many were changed."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    changed = 0
    for module in model.modules():
        if type(module) is not nn.Linear:
            continue
        weight = module.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            continue
        if id(weight) in embeddings:
            object.__setattr__(module, "forward", _TiedHead(module))
        else:
            weight.data = weight.data.t().contiguous().t()
        changed += 1
    return changed


class _TiedHead:
    """The forward of a linear layer whose weight is also the embedding."""

    def __init__(self, module: nn.Linear) -> None:
        self._module = module

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs [..., in_features] → [..., out_features]."""
        weight, bias = self._module.weight, self._module.bias
        num_rows = inputs.numel() // inputs.shape[-1]
        if not _FEW_ROWS <= num_rows < _MANY_ROWS:
            return F.linear(inputs, weight, bias)
        rows = inputs.reshape(num_rows, -1)
        product = torch.mm(weight, rows.t()).t()
        if bias is not None:
            product = product + bias
        return product.reshape(*inputs.shape[:-1], -1)
