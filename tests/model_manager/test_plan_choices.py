"""What a plan chooses where the entry leaves it open: smaller weights, other devices; what it remembers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.native import native_shape
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError
from inference_server.model_manager import kernels, workspace
from inference_server.model_manager.overheads import OverheadStore, overhead_key
from inference_server.model_manager.plan import ModelPlan, plan_model
from inference_server.types import MeasuredOverhead
from tests.checkpoints.files import LLAMA, write_folder, write_native_folder

GIB = 1024**3
FLAGS = frozenset({"avx2", "fma", "f16c"})
MEASURED = MeasuredOverhead(context_bytes=5_000_000, workspace_bytes=7_000_000, host_bytes=9_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model for the native kernels and for torch."""
    return write_native_folder(tmp_path / "native")


def plan(
    folder: Path,
    capacity: dict[str, int],
    *,
    flags: frozenset[str] = FLAGS,
    overheads: OverheadStore | None = None,
    **fields: Any,
) -> ModelPlan:
    spec = ModelSpec(**{"name": "m", "source": str(folder), "max_model_len": 32, **fields})
    return plan_model(spec, folder, Settings(), capacity, flags, overheads)


def needs(folder: Path, device: str = "cpu", **fields: Any) -> int:
    """Bytes on `device` with the smallest KV cache."""
    return plan(folder, {"cpu": 0, "cuda:0": 0}, device=device, **fields).bytes_by_device[device]


# ------------------------------------------------------------ smaller weights


@pytest.mark.parametrize("wanted", ["none", "int8", "int4"])
def test_on_the_native_kernels_auto_is_the_largest_that_fits(folder: Path, wanted: str) -> None:
    planned = plan(folder, {"cpu": needs(folder, quantization=wanted)})
    assert planned.load.quantization == wanted
    assert planned.load.kernels == "native"


def test_where_nothing_fits_the_smallest_is_what_is_refused(folder: Path) -> None:
    assert plan(folder, {"cpu": 1}).load.quantization == "int4"


def test_a_file_in_blocks_of_four_bits_is_never_blown_up_to_eight(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = write_native_folder(tmp_path / "blocks", blocks=True)
    needed = needs(blocks, quantization="gguf")
    assert plan(blocks, {"cpu": needed}).load.quantization == "gguf"
    caplog.set_level(logging.INFO)
    assert plan(blocks, {"cpu": needed - 1}).load.quantization == "int4"  # its embedding has 8 bits
    assert "with quantization int8: " not in caplog.text


@pytest.mark.parametrize("wanted", ["none", "bnb-int8", "bnb-nf4"])
def test_on_a_gpu_bitsandbytes_makes_it_fit(folder: Path, wanted: str) -> None:
    gpu = needs(folder, "cuda:0", quantization=wanted)
    planned = plan(folder, {"cpu": 8 * GIB, "cuda:0": gpu})
    assert (planned.device, planned.load.quantization) == ("cuda:0", wanted)


def test_a_smaller_form_on_a_gpu_comes_before_the_cpu_and_plain_weights_on_any_gpu_before_that(
    folder: Path,
) -> None:
    plain, small = (
        needs(folder, "cuda:0", quantization="none"),
        needs(folder, "cuda:0", quantization="bnb-nf4"),
    )
    both = plan(folder, {"cpu": 8 * GIB, "cuda:0": small, "cuda:1": plain})
    assert (both.device, both.load.quantization) == ("cuda:1", "none")
    neither = plan(folder, {"cpu": 8 * GIB, "cuda:0": small - 1})
    assert (neither.device, neither.load.kernels) == ("cpu", "native")


def test_without_bitsandbytes_torch_has_nothing_smaller() -> None:
    execution = kernels.Execution("torch", "none", "bfloat16", {})
    assert kernels.smaller_quantizations(execution, lambda name: False) == ()
    assert kernels.smaller_quantizations(execution, lambda name: True) == ("bnb-int8", "bnb-nf4")


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_what_the_entry_says_is_never_made_smaller(folder: Path, quantization: str) -> None:
    assert plan(folder, {"cpu": 1}, quantization=quantization).load.quantization == quantization


def test_the_way_to_a_smaller_form_is_logged_with_the_numbers(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plan(folder, {"cpu": needs(folder, quantization="int8")})
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("m does not fit on cpu with quantization none: ") for line in said)
    assert any(line.startswith("m goes to cpu with quantization int8: ") for line in said)


def test_a_checkpoint_that_no_device_can_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = LLAMA | {"quantization_config": {"quant_method": "vptq"}}
    stored = write_folder(tmp_path / "stored", config)
    with pytest.raises(ConfigError, match="comes quantized as vptq, which needs a GPU"):
        plan(stored, {"cpu": GIB})


# ------------------------------------------------------------ remembered overheads


def test_the_first_load_is_asked_to_measure_and_the_next_plan_uses_what_it_found(
    tmp_path: Path, folder: Path
) -> None:
    store = OverheadStore(tmp_path / "cache")
    first = plan(folder, {"cpu": GIB}, overheads=store)
    assert first.load.measures_overhead
    assert not first.is_measured
    assert first.context_bytes == workspace.NATIVE_CONTEXT_BYTES
    store.remember(overhead_key(first.load), MEASURED)
    second = plan(folder, {"cpu": GIB}, overheads=store)
    assert not second.load.measures_overhead
    assert second.is_measured
    assert (second.context_bytes, second.workspace_bytes) == (5_000_000, 7_000_000)
    exact = second.weights_bytes + second.kv_cache_bytes
    assert (second.weights_bytes, second.kv_cache_bytes) == (first.weights_bytes, first.kv_cache_bytes)
    assert second.bytes_by_device == {"cpu": exact + 12_000_000}


def test_without_a_place_to_remember_nothing_is_measured(folder: Path) -> None:
    assert not plan(folder, {"cpu": GIB}).load.measures_overhead


def test_torch_needs_room_for_what_it_copies_of_a_full_kv_cache_beyond_what_was_measured(
    tmp_path: Path, folder: Path
) -> None:
    store = OverheadStore(tmp_path / "cache")
    first = plan(folder, {"cpu": GIB}, overheads=store, kernels="torch")
    store.remember(overhead_key(first.load), MEASURED)
    second = plan(folder, {"cpu": GIB}, overheads=store, kernels="torch")
    num_layers = native_shape(read_config(folder)).num_layers
    assert second.workspace_bytes == 7_000_000 + 2 * second.kv_cache_bytes // num_layers


def test_a_gpu_whose_driver_did_not_tell_keeps_the_estimate_of_its_context(
    tmp_path: Path, folder: Path
) -> None:
    store = OverheadStore(tmp_path / "cache")
    capacity = {"cpu": 8 * GIB, "cuda:0": 8 * GIB}
    first = plan(folder, capacity, overheads=store)
    unknown = MeasuredOverhead(context_bytes=None, workspace_bytes=1000, host_bytes=500)
    store.remember(overhead_key(first.load), unknown)
    second = plan(folder, capacity, overheads=store)
    assert second.context_bytes == workspace.CUDA_DEVICE_CONTEXT_BYTES
    assert second.bytes_by_device["cpu"] == 500


# ------------------------------------------------------------ asleep


def test_asleep_a_model_on_the_cpu_keeps_its_context_and_one_on_a_gpu_also_its_weights_on_the_host(
    folder: Path,
) -> None:
    on_cpu = plan(folder, {"cpu": GIB})
    assert on_cpu.sleeping_bytes_by_device == {"cpu": on_cpu.context_bytes}
    on_gpu = plan(folder, {"cpu": 8 * GIB, "cuda:0": 8 * GIB})
    assert on_gpu.sleeping_bytes_by_device == {
        "cuda:0": on_gpu.context_bytes,
        "cpu": workspace.CUDA_HOST_CONTEXT_BYTES + on_gpu.weights_bytes,
    }
