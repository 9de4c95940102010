"""The quality guard: no weight format may cost more agreement with float32 than is allowed here.

The demo model's own weights judge what keeps them as they are; the same function off its 4-bit grid judges
what quantizes (`benchmarks/off_grid.py` says why). The reference is transformers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.off_grid import write_off_grid
from benchmarks.quality import ExecutionPath, compare, path_logits, reference_logits, text_tokens
from inference_server.checkpoints.native import native_cpu
from inference_server.model_manager.devices import cpu_flags
from tests.demo import demo_folder

pytestmark = pytest.mark.model
NUM_POSITIONS = 576
needs_native = pytest.mark.skipif(
    native_cpu(cpu_flags()) is not None, reason="this CPU does not run the native kernels"
)


@dataclass(frozen=True)
class Judge:
    """A checkpoint and its float32 logits over the text."""

    folder: Path
    tokens: list[int]
    reference: np.ndarray


def judge(folder: Path) -> Judge:
    tokens = text_tokens(folder, NUM_POSITIONS)
    assert len(tokens) == NUM_POSITIONS
    return Judge(folder, tokens, reference_logits(folder, tokens))


@pytest.fixture(scope="module")
def own_weights() -> Judge:
    return judge(demo_folder())


@pytest.fixture(scope="module")
def off_grid(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return judge(write_off_grid(demo_folder(), tmp_path_factory.mktemp("off-grid")))


def assert_near(judge: Judge, path: ExecutionPath, *, top1: float, kl: float) -> None:
    quality = compare(judge.reference, path_logits(judge.folder, path, judge.tokens), judge.tokens)
    assert quality.top1 >= top1, quality
    assert quality.mean_kl <= kl, quality


@needs_native
@pytest.mark.parametrize(
    ("quantization", "dtype", "top1", "kl"),
    [
        ("none", "float32", 0.999, 1e-5),
        ("none", "bfloat16", 0.975, 0.002),
        ("gguf", "bfloat16", 0.975, 0.002),
    ],
)
def test_native_kernels_keep_a_checkpoints_own_weights(
    own_weights: Judge, quantization: str, dtype: str, top1: float, kl: float
) -> None:
    assert_near(own_weights, ExecutionPath("native", quantization, dtype), top1=top1, kl=kl)


@needs_native
@pytest.mark.parametrize(("quantization", "top1", "kl"), [("int8", 0.95, 0.004), ("int4", 0.64, 0.30)])
def test_quantizing_ordinary_weights_costs_no_more_than_its_bits(
    off_grid: Judge, quantization: str, top1: float, kl: float
) -> None:
    assert_near(off_grid, ExecutionPath("native", quantization, "bfloat16"), top1=top1, kl=kl)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # bitsandbytes on a CPU
@pytest.mark.parametrize(
    ("quantization", "top1", "kl"), [("none", 0.95, 0.003), ("bnb-int8", 0.85, 0.04), ("bnb-nf4", 0.63, 0.36)]
)
def test_torch_paths_stay_near_float32(off_grid: Judge, quantization: str, top1: float, kl: float) -> None:
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    assert_near(off_grid, ExecutionPath("torch", quantization, "bfloat16"), top1=top1, kl=kl)
