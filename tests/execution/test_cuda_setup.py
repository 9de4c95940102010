"""What does not work on a GPU is done without, and the log says so."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch

from inference_server.execution.admission import LayerFacts, probe
from inference_server.execution.attention.binding import INTERFACE_NAME, register
from inference_server.execution.cuda_runner import CudaRunner
from inference_server.execution.cuda_setup import prepare_for_cuda, set_up_cuda
from inference_server.execution.kv_cache import KVCache
from inference_server.loading.loader import LoadedModel, load_model
from tests.engine.tiny_models import save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, list[LayerFacts], KVCache]:
    register()
    loaded = load_model(
        save_tiny_model("llama", tmp_path_factory.mktemp("tiny-llama")),
        device="cpu",
        dtype="float32",
        quantization="none",
        max_model_len=64,
        attention=INTERFACE_NAME,
    )
    layers = probe(loaded.model, loaded.config, CPU, torch.float32)
    cache = KVCache(
        [layer.shape for layer in layers], num_blocks=8, block_size=16, dtype=torch.float32, device=CPU
    )
    return loaded, layers, cache


def set_up(parts: Any, capture: Any = None) -> CudaRunner | None:
    loaded, layers, cache = parts
    return set_up_cuda(loaded, layers, cache, max_num_seqs=2, max_model_len=64, salt=b"salt", capture=capture)


def test_without_triton_there_is_no_paged_runner_and_nothing_is_fused(
    parts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("attention.cuda", "fusion"):
        monkeypatch.setitem(sys.modules, f"inference_server.execution.{name}", None)
    with caplog.at_level(logging.WARNING):
        assert set_up(parts) is None
        prepare_for_cuda(parts[0])
    assert "gathered blocks: Triton cannot be imported" in caplog.text
    assert "nothing is fused" in caplog.text


class TestWithTriton:
    """Needs its interpreter."""

    @pytest.fixture(autouse=True)
    def _interpreted(self) -> None:
        from tests.execution.triton_here import require_triton

        require_triton()

    def test_kernels_that_are_wrong_are_not_used(
        self, parts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from inference_server.execution.attention import cuda

        monkeypatch.setattr(cuda, "check_backend", lambda *args, **more: float("nan"))
        with caplog.at_level(logging.WARNING):
            assert set_up(parts) is None
        assert "off by nan" in caplog.text

    def test_kernels_that_do_not_compile_are_not_used(
        self, parts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from inference_server.execution.attention import cuda

        def fails(*args: Any, **more: Any) -> float:
            raise RuntimeError("no kernel image is available")

        monkeypatch.setattr(cuda, "check_backend", fails)
        with caplog.at_level(logging.WARNING):
            assert set_up(parts) is None
        assert "no kernel image" in caplog.text

    def test_what_cannot_be_captured_runs_eagerly(
        self, parts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(parts[0].config, "num_experts", 4, raising=False)
        monkeypatch.setattr(parts[0].config, "_experts_implementation", "eager", raising=False)
        with caplog.at_level(logging.WARNING):
            runner = set_up(parts, capture=lambda compute: pytest.fail("captured"))
        assert runner is not None
        assert runner.graphs is None
        assert "decode steps run eagerly: its experts" in caplog.text
