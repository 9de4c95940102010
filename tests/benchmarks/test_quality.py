"""The figures that the quality table is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.quality import TEXT, ExecutionPath, Quality, compare, matrix_errors, print_table


def test_equal_logits_agree_fully() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    assert compare(logits, logits + 3) == Quality(
        top1=1.0, mean_kl=pytest.approx(0, abs=1e-12), num_positions=5
    )


def test_the_divergence_is_that_of_torch() -> None:
    random = np.random.default_rng(1)
    reference, logits = random.standard_normal((2, 7, 30)).astype(np.float32) * 4
    measured = compare(reference, logits)
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
        compare(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


def test_errors_of_matrices_count_only_what_can_be_in_blocks(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(64, 64), "norm": torch.randn(64), "odd": torch.randn(4, 33)}
    save_file(tensors, tmp_path / "x.safetensors")
    errors = matrix_errors(tmp_path / "x.safetensors")
    assert 0.001 < errors["8 bits"] < 0.01 < errors["4 bits"] < 0.1


def test_the_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", {ExecutionPath("native", "int4", "bfloat16"): Quality(0.75, 0.125, 512)})
    printed = capsys.readouterr().out
    assert "Title (512 positions)" in printed
    assert "| int4 · native · bfloat16 | 0.750 | 0.12500 |" in printed


def test_the_text_is_long_enough() -> None:
    assert len(TEXT.read_text(encoding="utf-8").split()) > 512
