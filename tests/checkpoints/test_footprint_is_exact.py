"""The formulas against models that were really loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from inference_server.checkpoints.footprint import weight_bytes


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        tie_word_embeddings=request.param,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_plain_weights_take_what_is_predicted(folder: Path, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert weight_bytes(folder, quantization="none", dtype=dtype) == _bytes_of(model.parameters())


@pytest.mark.filterwarnings("ignore")  # bitsandbytes on a CPU
@pytest.mark.parametrize("quantization", ["bnb-nf4", "bnb-int8"])
def test_quantized_weights_take_what_is_predicted(folder: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    options: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    if quantization == "bnb-nf4":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options)
    )
    tensors = [*model.parameters(), *_extra_tensors(model)]
    predicted = weight_bytes(folder, quantization=quantization, dtype="bfloat16")
    num_linears = 2 * 7
    assert (
        0 <= predicted - _bytes_of(tensors) <= 144 * num_linears
    )  # nf4: map and offset, padded by the allocator


def _extra_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """Scales that bitsandbytes keeps beside the weights."""
    found: list[torch.Tensor] = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        found += [] if state is None else [state.absmax, state.code]
        scales = getattr(parameter, "SCB", None)
        found += [] if scales is None else [scales]
    return found


def _bytes_of(tensors: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
