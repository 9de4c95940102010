"""The figures that the quality table is made of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.quality import TEXT, Cost, ExecutionPath, Quality, compare, matrix_errors, print_table

TOKENS = [4, 8, 15, 16, 23, 2, 9]


def test_equal_logits_agree_fully() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    quality = compare(logits, logits + 3, TOKENS[:5])
    assert (quality.top1, quality.num_positions) == (1.0, 5)
    assert quality.mean_kl == pytest.approx(0, abs=1e-12)


def test_perplexity_is_the_mean_surprise_at_the_tokens_that_follow() -> None:
    logits = np.random.default_rng(2).standard_normal((7, 30)).astype(np.float32) * 3
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]).double(), torch.tensor(TOKENS[1:]))
    assert compare(logits, logits, TOKENS).perplexity == pytest.approx(math.exp(float(loss)))


def test_the_divergence_is_that_of_torch() -> None:
    random = np.random.default_rng(1)
    reference, logits = random.standard_normal((2, 7, 30)).astype(np.float32) * 4
    measured = compare(reference, logits, TOKENS)
    expected = torch.nn.functional.kl_div(
        torch.from_numpy(logits).double().log_softmax(-1),
        torch.from_numpy(reference).double().log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    assert measured.mean_kl == pytest.approx(float(expected))
    assert measured.top1 == np.mean(reference.argmax(1) == logits.argmax(1))


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        compare(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), [0, 1])


def test_errors_of_matrices_count_only_what_can_be_in_blocks(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(64, 64), "norm": torch.randn(64), "odd": torch.randn(4, 33)}
    save_file(tensors, tmp_path / "x.safetensors")
    errors = matrix_errors(tmp_path / "x.safetensors")
    assert 0.001 < errors["8 bits"] < 0.01 < errors["4 bits"] < 0.1


def test_the_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    quality, cost = Quality(0.75, 0.125, 9.5, 512), Cost(96_000_000, {1: 150.2, 16: 1234.0})
    print_table("Title", {ExecutionPath("native", "int4", "bfloat16"): (quality, cost)})
    printed = capsys.readouterr().out
    assert "Title (512 positions)" in printed
    assert "| int4 · native · bfloat16 | 0.750 | 0.12500 | 9.50 | 96 | 150 / 1234 |" in printed


def test_the_text_is_long_enough() -> None:
    assert len(TEXT.read_text(encoding="utf-8").split()) > 512
