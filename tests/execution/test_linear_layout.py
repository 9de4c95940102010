"""Weights change their place in memory and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_server.execution.linear_layout import optimise_linear_layout


class TiedModel(nn.Module):
    """An embedding, a hidden layer and a head that is the embedding."""

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(37, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 37, bias=bias)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.embedding(ids)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 63), (1, 64), (1, 200), (3, 5), (0,), (4,)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_outputs_are_the_same(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(3)
    model = TiedModel(bias=bias)
    ids = torch.randint(0, 37, shape)
    before = model(ids)
    assert optimise_linear_layout(model) == 2
    after = model(ids)
    assert after.shape == before.shape
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_values_and_tying_survive_and_no_memory_is_added() -> None:
    model = TiedModel()
    hidden, embedding = model.hidden.weight.detach().clone(), model.embedding.weight.detach().clone()
    optimise_linear_layout(model)
    assert torch.equal(model.hidden.weight, hidden)
    assert torch.equal(model.embedding.weight, embedding)
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.is_contiguous()
    assert model.hidden.weight.t().is_contiguous()
    assert model.hidden.weight.untyped_storage().nbytes() == hidden.untyped_storage().nbytes()
    assert set(model.state_dict()) == set(TiedModel().state_dict())


def test_other_dtypes_and_other_layers_are_left_alone() -> None:
    class Special(nn.Linear):
        """Whoever subclasses it may read its weight in another way."""

    model = nn.ModuleList([nn.Linear(8, 8, dtype=torch.bfloat16), Special(8, 8), nn.LayerNorm(8)])
    assert optimise_linear_layout(model) == 0
    assert model[0].weight.is_contiguous()
    assert model[1].weight.is_contiguous()
