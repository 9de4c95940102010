"""bitsandbytes models load on the CPU, generate, and stay near the float32 ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inference_server.checkpoints.packed import packed_files
from inference_server.engine.assembly import build_text_engine
from inference_server.engine.text_engine import TextEngine
from inference_server.execution.attention.binding import INTERFACE_NAME, register
from inference_server.execution.linear_layout import optimise_linear_layout
from inference_server.loading.loader import load_model, storage_bytes
from inference_server.loading.quantized import QuantizedStore
from tests.engine.reference import (
    build_engine,
    engine_spec,
    greedy_request,
    reference_model,
    run_to_end,
    tokens_of,
)
from tests.engine.test_golden_rule import make_prompts
from tests.engine.tiny_models import save_llama_for_4_bits

SCHEMES = ["bnb-nf4", "bnb-int8"]
MIN_TOP1_AGREEMENT = {"bnb-nf4": 0.6, "bnb-int8": 0.9}
MIN_CORRELATION = {"bnb-nf4": 0.95, "bnb-int8": 0.999}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose sizes suit 4-bit blocks of 64."""
    return save_llama_for_4_bits(tmp_path_factory.mktemp("tiny-llama-128"))


def load(folder: Path, scheme: str, attention: str = "eager", cache_dir: Path | None = None) -> Any:
    return load_model(
        folder,
        device="cpu",
        dtype="float32",
        quantization=scheme,
        max_model_len=256,
        attention=attention,
        cache_dir=cache_dir,
    )


def generate(engine: TextEngine, prompts: dict[str, list[int]]) -> dict[str, list[int]]:
    for request_id, prompt in prompts.items():
        engine.submit(greedy_request(request_id, prompt, 6))
    return {request_id: tokens_of(deltas) for request_id, deltas in run_to_end(engine).items()}


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.inference_mode()
def test_logits_are_near_the_float32_ones(folder: Path, scheme: str) -> None:
    ids = torch.randint(3, 128, (4, 64), generator=torch.Generator().manual_seed(1))
    exact = reference_model(folder)(ids).logits
    quantized = load(folder, scheme).model(ids).logits.float()
    agreement = float((exact.argmax(-1) == quantized.argmax(-1)).float().mean())
    correlation = float(torch.corrcoef(torch.stack([exact.flatten(), quantized.flatten()]))[0, 1])
    assert agreement >= MIN_TOP1_AGREEMENT[scheme], (agreement, correlation)
    assert correlation >= MIN_CORRELATION[scheme], (agreement, correlation)


@torch.inference_mode()
def test_nf4_computes_with_the_weights_that_its_codes_stand_for(folder: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    quantized, plain = load(folder, "bnb-nf4").model, reference_model(folder)
    for name, module in quantized.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.copy_(weight)
    ids = torch.randint(3, 128, (2, 40), generator=torch.Generator().manual_seed(2))
    # With bfloat16 instructions bitsandbytes repacks the weights and multiplies in bfloat16 (8 bits).
    tolerance = 2**-5 if torch.cpu._is_avx512_bf16_supported() else 1e-3
    torch.testing.assert_close(quantized(ids).logits, plain(ids).logits, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_gives_what_each_prompt_gives_alone(folder: Path, scheme: str) -> None:
    prompts = make_prompts(4, seed=8, longest=20)
    engine = build_engine(folder, quantization=scheme, enable_prefix_caching=False)
    together = generate(engine, prompts)
    assert {len(output) for output in together.values()} == {6}
    alone = {name: generate(engine, {name: prompt})[name] for name, prompt in prompts.items()}
    same = sum(together[name] == alone[name] for name in prompts)
    assert same >= len(prompts) - 1, (together, alone)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_smaller_and_stay_as_they_are(folder: Path, scheme: str) -> None:
    register()
    plain = load(folder, "none", INTERFACE_NAME)
    quantized = load(folder, scheme, INTERFACE_NAME)
    assert quantized.weights_bytes < 0.6 * plain.weights_bytes
    optimise_linear_layout(quantized.model)
    assert storage_bytes(quantized.model) == quantized.weights_bytes
    types = {type(module.mlp.up_proj).__name__ for module in quantized.model.model.layers}
    assert types == {"Linear4bit" if scheme == "bnb-nf4" else "Linear8bitLt"}
    assert type(quantized.model.lm_head).__name__ == "Linear"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_engine_reports_the_bytes_it_holds(folder: Path, scheme: str) -> None:
    _, facts = build_text_engine(engine_spec(folder, quantization=scheme), lambda stage, fraction: None)
    assert facts.memory.weights_bytes < storage_bytes(reference_model(folder))


# ---------------------------------------------------------------- quantized once


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_load_reads_what_the_first_has_quantized(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    first = load(folder, scheme, cache_dir=tmp_path)
    assert len([path for path in packed_files(tmp_path, folder) if path.suffix == ".checkpoint"]) == 1
    monkeypatch.setattr(QuantizedStore, "fill", None)  # nothing is saved again
    second = load(folder, scheme, cache_dir=tmp_path)
    assert second.weights_bytes == first.weights_bytes
    assert second.eos_token_ids == first.eos_token_ids
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(first.model(ids).logits, second.model(ids).logits)


def test_a_disk_without_room_costs_only_the_next_loads_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_server.loading.quantized.has_room", lambda path, num_bytes: False)
    load(folder, "bnb-nf4", cache_dir=tmp_path)
    assert [path.name for path in packed_files(tmp_path, folder)] == ["source"]
    load(folder, "bnb-nf4", cache_dir=tmp_path)


def test_plain_weights_are_kept_nowhere(folder: Path, tmp_path: Path) -> None:
    load(folder, "none", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
