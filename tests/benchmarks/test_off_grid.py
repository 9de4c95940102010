"""The checkpoint for judging quantization computes what the original does, with weights on no grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.off_grid import write_off_grid
from benchmarks.quality import compare, reference_logits, relative_error
from inference_server.loading.blocks import quantize_4_bits


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def on_grid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose layers were rounded to 4 bits."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=120,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=request.param,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif ".layers." in name:
                parameter.copy_(torch.from_numpy(quantize_4_bits(parameter.numpy()).dequantize()))
    folder = tmp_path_factory.mktemp("on-grid")
    model.save_pretrained(folder)
    return folder


def test_the_function_stays_what_it_was(on_grid: Path, tmp_path: Path) -> None:
    off_grid = write_off_grid(on_grid, tmp_path / "out", dtype=torch.float32)
    tokens = torch.randint(0, 120, (64,), generator=torch.Generator().manual_seed(1)).tolist()
    before, after = reference_logits(on_grid, tokens), reference_logits(off_grid, tokens)
    assert abs(before - after).max() < 1e-3 * abs(before).max()
    assert compare(before, after, tokens).mean_kl < 1e-6


def test_four_bits_are_exact_before_and_an_approximation_after(on_grid: Path, tmp_path: Path) -> None:
    off_grid = write_off_grid(on_grid, tmp_path / "out", dtype=torch.float32)
    errors = []
    for folder in (on_grid, off_grid):
        parts = [
            relative_error(parameter.detach().numpy(), quantize_4_bits)
            for name, parameter in LlamaForCausalLM.from_pretrained(folder).named_parameters()
            if name.endswith("proj.weight")
        ]
        assert len(parts) == 14
        errors.append([(error / squares) ** 0.5 for error, squares in parts])
    assert max(errors[0]) < 0.005
    assert min(errors[1]) > 0.05


def test_another_family_is_refused(on_grid: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    copy.mkdir()
    (copy / "config.json").write_text((on_grid / "config.json").read_text().replace('"llama"', '"qwen2"'))
    with pytest.raises(ValueError, match="Llama only"):
        write_off_grid(copy, tmp_path / "out")
