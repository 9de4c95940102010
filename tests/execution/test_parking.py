"""Weights that leave their device and come back: the same numbers, seen by whoever referred to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from inference_server.execution.kv_cache import KVCache, LayerShape
from inference_server.execution.parking import HostBuffer, Parking
from inference_server.loading.loader import load_model, storages
from tests.engine.tiny_models import save_llama_for_4_bits


class Tied(nn.Module):
    """Two layers that share a weight, one of them through a view, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.view = self.first.weight.data[2:4]
        self.register_buffer("table", torch.arange(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) + self.view.sum() + self.table[3]


def parking_of(model: nn.Module) -> Parking:
    return Parking(storages(model), locks_pages=False)


def test_a_parked_model_holds_nothing_on_its_device_and_computes_the_same_afterwards() -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(2, 8)
    expected = model(x)
    parking = parking_of(model)
    assert parking.num_bytes == 4 * (64 + 8 + 8) + 8 * 5  # the shared weight once
    for _ in range(2):
        parking.park()
        assert parking.is_parked
        assert sum(storage.nbytes() for storage in storages(model)) == 0
        parking.park()  # once more does nothing
        parking.bring_back()
        assert not parking.is_parked
        assert torch.equal(model(x), expected)
    parking.bring_back()
    assert torch.equal(model(x), expected)


def test_a_device_that_has_become_too_small_leaves_the_model_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Tied(), torch.ones(1, 8)
    expected = model(x)
    parking = parking_of(model)
    parking.park()
    resize, calls = torch.UntypedStorage.resize_, []

    def fail_at_the_second(storage: torch.UntypedStorage, size: int) -> None:
        calls.append(size)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        resize(storage, size)

    monkeypatch.setattr(torch.UntypedStorage, "resize_", fail_at_the_second)
    with pytest.raises(torch.OutOfMemoryError):
        parking.bring_back()
    monkeypatch.undo()
    assert parking.is_parked
    parking.bring_back()
    assert torch.equal(model(x), expected)


def test_too_little_main_memory_leaves_the_model_on_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: HostBuffer, num_bytes: int, *, locks_pages: bool) -> None:
        raise MemoryError

    model, x = Tied(), torch.ones(1, 8)
    expected = model(x)
    parking = parking_of(model)
    monkeypatch.setattr(HostBuffer, "__init__", refuse)
    with pytest.raises(MemoryError):
        parking.park()
    assert not parking.is_parked
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("scheme", ["none", "bnb-nf4", "bnb-int8"])
@torch.inference_mode()
def test_a_loaded_model_comes_back_quantized_as_it_was(tmp_path: Path, scheme: str) -> None:
    loaded = load_model(
        save_llama_for_4_bits(tmp_path / "m"),
        device="cpu",
        dtype="float32",
        quantization=scheme,
        max_model_len=64,
        attention="eager",
    )
    ids = torch.arange(3, 20)[None]
    expected = loaded.model(ids).logits
    own = [storage for storage in storages(loaded.model) if storage.resizable()]
    parking = Parking(own, locks_pages=False)
    parking.park()
    parking.bring_back()
    assert torch.equal(loaded.model(ids).logits, expected)


def test_a_kv_cache_gives_its_memory_back_and_its_padding_is_zero_again() -> None:
    shape = LayerShape(num_kv_heads=2, key_dim=4, value_dim=8)
    cache = KVCache([shape] * 2, num_blocks=3, block_size=4, dtype=torch.float32, device=torch.device("cpu"))
    table = torch.tensor([[cache.padding_block, 0]])
    cache.layers[0].store(torch.tensor([0]), torch.ones(1, 2, 4), torch.ones(1, 2, 8))
    assert cache.held_bytes == cache.num_bytes
    cache.release()
    assert cache.held_bytes == 0
    cache.restore()
    assert cache.held_bytes == cache.num_bytes
    cache.layers[0].store(torch.tensor([0]), torch.ones(1, 2, 4), torch.ones(1, 2, 8))
    keys, values = cache.layers[0].gather(table)
    assert torch.equal(keys[:, :, :4], torch.zeros(1, 2, 4, 4))
    assert torch.equal(keys[0, :, 4], torch.ones(2, 4))
    assert torch.equal(values[0, :, 4], torch.ones(2, 8))
