"""A fused model gives what it gave before, with fewer kernels; what is not recognised stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.execution.triton_here import require_triton

require_triton()

from inference_server.execution.fused import rotate, silu_and_multiply  # noqa: E402
from inference_server.execution.fusion import Projections, fuse  # noqa: E402
from inference_server.loading.loader import storage_bytes  # noqa: E402
from tests.engine.tiny_models import FAMILIES  # noqa: E402

NORMS, MLPS = "norms", "feed-forward layers"
QKV, ROTARY = "merged query, key and value projections", "rotary embeddings"
FUSED = {
    "llama": {NORMS: 7, MLPS: 3, QKV: 3, ROTARY: 3},
    "mistral": {NORMS: 7, MLPS: 3, QKV: 3, ROTARY: 3},
    "qwen3": {NORMS: 13, MLPS: 3, QKV: 3, ROTARY: 3},
    "gemma3": {NORMS: 19, QKV: 3, ROTARY: 3},  # its activation is another
    "gpt2": {},
}


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return result


@pytest.mark.parametrize("family", list(FUSED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter truncates to bfloat16
def test_a_fused_model_computes_what_it_did_and_holds_what_it_held(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = FAMILIES[family]().to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    expected, num_bytes = logits(model), storage_bytes(model)
    changed = fuse(model, dtype)
    assert {kind: count for kind, count in changed.items() if count} == FUSED[family]
    assert storage_bytes(model) == num_bytes
    found = logits(model)
    if dtype is torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        errors = [float((some.float() - logits(exact)).abs().mean()) for some in (found, expected)]
        assert errors[0] <= 1.2 * errors[1]  # no farther from the truth than it was
    assert torch.equal(logits(plain), expected)  # nothing but this one model changed


@pytest.mark.parametrize("with_bias", [False, True])
def test_merged_projections_give_each_ones_output_in_any_order(with_bias: bool) -> None:
    layers = [nn.Linear(8, width, bias=with_bias) for width in (6, 4, 2)]
    merged = Projections.merge(layers)
    assert merged is not None
    parts = [merged.part(number) for number in range(3)]
    first, second = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    with torch.inference_mode():
        for order in ((0, 1, 2), (2, 1, 0), (1,), (0, 2, 1), (0, 0, 1, 1, 2)):
            for number in order:
                torch.testing.assert_close(parts[number](first), layers[number](first))
        parts[0](first)
        torch.testing.assert_close(parts[1](second), layers[1](second))


def test_layers_of_different_kinds_are_not_merged() -> None:
    assert Projections.merge([nn.Linear(4, 2), nn.Linear(4, 2, bias=False)]) is None
    assert Projections.merge([nn.Linear(4, 2), nn.Linear(6, 2)]) is None
    assert Projections.merge([nn.Linear(4, 2), nn.Identity()]) is None


class OtherRMSNorm(nn.Module):
    """Named like one, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))
        self.eps = 1e-6

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden / hidden.abs().mean(-1, keepdim=True) * self.weight


def test_a_module_that_computes_something_else_stays_as_it_is() -> None:
    module, sample = OtherRMSNorm(), torch.randn(1, 3, 8)
    expected = module(sample)
    assert not fuse(module, torch.float32)
    assert torch.equal(module(sample), expected)


def test_strided_inputs_are_read_where_they_lie() -> None:
    both = torch.randn(1, 3, 40)
    gate, up = both[..., :20], both[..., 20:]
    torch.testing.assert_close(silu_and_multiply(gate, up), nn.functional.silu(gate) * up)
    whole = torch.randn(1, 3, 6 * 16)
    query = whole[..., :64].view(1, 3, 4, 16).transpose(1, 2)
    key = whole[..., 64:].view(1, 3, 2, 16).transpose(1, 2)
    cos, sin = torch.randn(1, 3, 16), torch.randn(1, 3, 16)
    new_query, new_key = rotate(query, key, cos, sin)
    for new, old in ((new_query, query), (new_key, key)):
        turned = torch.cat([-old[..., 8:], old[..., :8]], -1)
        torch.testing.assert_close(new, old * cos[:, None] + turned * sin[:, None])
