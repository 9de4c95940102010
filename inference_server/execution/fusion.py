"""Fewer kernels per layer: merged projections and fused norms, activations and rotary embeddings.

A pass over a loaded model. Each change is made to single modules, never to a class or a file of
transformers, and only if on random numbers the module then gives what it gave before; whatever is not
recognised or differs stays as it is. Weights are moved, not copied.
"""

from __future__ import annotations

import logging
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from inference_server.execution import fused

# Largest accepted difference from the module as it was, in standard deviations of its output.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
ROTARY = "apply_rotary_pos_emb"
_NORM_FORMS = ((0.0, True), (1.0, False), (0.0, False))  # offset of the weights, round before them
_NUM_ROWS = 3
logger = logging.getLogger(__name__)


@torch.inference_mode()
def fuse(model: nn.Module, dtype: torch.dtype) -> Counter[str]:
    """Change what can be changed; returns how many modules were, by kind."""
    changed: Counter[str] = Counter()
    for name in [name for name, _ in model.named_modules()]:  # names hold no weights that are replaced
        module = model.get_submodule(name)
        if _fuse_norm(module, dtype):
            changed["norms"] += 1
        elif _fuse_mlp(module, dtype):
            changed["feed-forward layers"] += 1
        elif hasattr(module, "layer_idx") and all(hasattr(module, f"{name}_proj") for name in "qkv"):
            changed["merged query, key and value projections"] += _merge_qkv(module)
            changed["rotary embeddings"] += _fuse_rotary(module, dtype)
    logger.info("fused: %s", ", ".join(f"{count} {kind}" for kind, count in changed.items()) or "nothing")
    return changed


# ---------------------------------------------------------------- norms


def _fuse_norm(module: Any, dtype: torch.dtype) -> bool:
    if not type(module).__name__.endswith("RMSNorm"):
        return False
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(eps, float):
        return False
    sample = _noise((1, _NUM_ROWS, len(weight)), dtype, weight.device)
    expected = module(sample)
    for offset, round_first in _NORM_FORMS:

        def forward(
            hidden: torch.Tensor, offset: float = offset, round_first: bool = round_first
        ) -> torch.Tensor:
            return fused.rms_norm(hidden, module.weight, eps, offset=offset, round_first=round_first)

        if _agree(forward(sample), expected, dtype):
            module.forward = forward
            return True
    return False


# ---------------------------------------------------------------- feed-forward layers


def _fuse_mlp(module: Any, dtype: torch.dtype) -> bool:
    children = dict(module.named_children())
    if set(children) != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    gate, up, down = children["gate_proj"], children["up_proj"], children["down_proj"]
    if "silu" not in type(children["act_fn"]).__name__.lower() or not hasattr(gate, "in_features"):
        return False
    sample = _noise((1, _NUM_ROWS, gate.in_features), dtype, _device(gate))
    expected = module(sample)

    def apart(hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = down(fused.silu_and_multiply(gate(hidden), up(hidden)))
        return result

    if not _agree(apart(sample), expected, dtype):
        return False
    merged = Projections.merge([gate, up])
    if merged is None:
        module.forward = apart
        return True
    module.gate_proj, module.up_proj = merged.part(0), merged.part(1)

    def together(hidden: torch.Tensor) -> torch.Tensor:
        first, second = merged.compute(hidden)
        result: torch.Tensor = down(fused.silu_and_multiply(first, second))
        return result

    module.forward = together
    return True


# ---------------------------------------------------------------- projections of one input


class Projections(nn.Module):
    """Several linear layers over the same input as one matrix product."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        weights: list[torch.Tensor] = [layer.weight for layer in layers]
        biases: list[torch.Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor] = []

    @classmethod
    def merge(cls, layers: list[Any]) -> Projections | None:
        """None where they are not plain linear layers of one input and one kind."""
        plain = all(type(layer) is nn.Linear for layer in layers)
        kinds = {(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in layers if plain}
        return cls(layers) if plain and len(kinds) == 1 else None

    def part(self, number: int) -> ProjectionPart:
        """What takes the place of one of the layers."""
        return ProjectionPart(self, number)

    def compute(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each layer's output, as views of one tensor."""
        return torch.split(F.linear(hidden, self.weight, self.bias), self.sizes, dim=-1)

    def begin(self, hidden: torch.Tensor) -> torch.Tensor:
        """The first layer's output; the others' are kept until they are asked for."""
        self._input = hidden
        first, *self._outputs = self.compute(hidden)
        return first

    def take(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Another layer's output: the kept one if it is of this very input, or else computed alone."""
        if self._input is hidden and len(self._outputs) == len(self.sizes) - number:
            output = self._outputs.pop(0)
            if not self._outputs:
                self._input = None
            return output
        first = sum(self.sizes[:number])
        rows = slice(first, first + self.sizes[number])
        return F.linear(hidden, self.weight[rows], None if self.bias is None else self.bias[rows])


class ProjectionPart(nn.Module):
    """Stands where a linear layer stood."""

    def __init__(self, projections: Projections, number: int) -> None:
        super().__init__()
        self.in_features = projections.weight.shape[1]
        self.out_features = projections.sizes[number]
        self._number = number
        if number == 0:
            self.projections = projections
        else:
            object.__setattr__(self, "projections", projections)  # its weights are counted once

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the linear layer gave."""
        if self._number == 0:
            return self.projections.begin(hidden)
        return self.projections.take(self._number, hidden)


def _merge_qkv(module: Any) -> int:
    merged = Projections.merge([module.q_proj, module.k_proj, module.v_proj])
    if merged is None:
        return 0
    module.q_proj, module.k_proj, module.v_proj = (merged.part(number) for number in range(3))
    return 1


# ---------------------------------------------------------------- rotary embeddings


def _fuse_rotary(module: Any, dtype: torch.dtype) -> int:
    """Give this module's forward a rotary function of ours, in a copy of the names that it looks up."""
    forward = type(module).forward
    original = getattr(forward, "__globals__", {}).get(ROTARY)
    if original is None or forward.__closure__ is not None or "forward" in vars(module):
        return 0
    if not _rotates_halves(original, dtype, _device(module)):
        return 0

    def rotary(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any, **more: Any
    ) -> Any:
        whole = cos.shape == (1, query.shape[2], query.shape[3]) and query.shape[3] == key.shape[3]
        if rest or more or not whole or query.stride(-1) != 1 or key.stride(-1) != 1:
            return original(query, key, cos, sin, *rest, **more)
        return fused.rotate(query, key, cos, sin)

    names = {**forward.__globals__, ROTARY: rotary}
    copy = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    module.forward = types.MethodType(copy, module)
    return 1


def _rotates_halves(original: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the function is the usual one: the first half of a head rotated against the second."""
    query = _noise((1, 4, _NUM_ROWS, 32), dtype, device)
    key, cos, sin = query[:, :2] * 2, query[:, 0] / 2, query[:, 1] / 3
    try:
        expected = original(query, key, cos, sin)
    except (TypeError, RuntimeError, ValueError):
        return False
    found = fused.rotate(query, key, cos, sin)
    return all(_agree(one, other, dtype) for one, other in zip(found, expected, strict=True))


# ---------------------------------------------------------------- checks


def _noise(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(shape, generator=generator).to(device, dtype)


def _agree(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    spread = float(expected.float().std())
    return float((found.float() - expected.float()).abs().max()) <= TOLERANCE[dtype] * max(spread, 1e-6)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
