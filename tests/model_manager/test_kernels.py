"""What computes a model: chosen where the entry says auto, refused where it asks for what cannot be."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from inference_server.checkpoints.facts import read_config
from inference_server.config.catalog import ModelSpec
from inference_server.errors import ConfigError
from inference_server.model_manager import kernels
from inference_server.model_manager.kernels import Execution, choose_execution, needs_native, resolve_dtype
from tests.checkpoints.files import NATIVE_LLAMA, write_folder, write_native_folder

FLAGS = frozenset({"avx2", "fma", "f16c"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_native_folder(tmp_path / "plain")


@pytest.fixture
def with_blocks(tmp_path: Path) -> Path:
    return write_native_folder(tmp_path / "blocks", blocks=True)


def choose(folder: Path, *, device: str = "cpu", flags: frozenset[str] = FLAGS, **fields: Any) -> Execution:
    spec = ModelSpec(name="m", source=str(folder), **fields)
    return choose_execution(spec, folder, read_config(folder), device, flags)


def summary(execution: Execution) -> tuple[str, str, str]:
    return execution.kernels, execution.quantization, execution.dtype


def test_auto_is_native_where_model_and_cpu_allow_it(folder: Path, with_blocks: Path) -> None:
    assert summary(choose(folder)) == ("native", "none", "bfloat16")
    assert summary(choose(with_blocks)) == ("native", "gguf", "bfloat16")
    assert choose(with_blocks).block_bits["model.layers.1.mlp.down_proj.weight"] == 4


def test_auto_is_torch_without_quantization_everywhere_else(with_blocks: Path, tmp_path: Path) -> None:
    assert summary(choose(with_blocks, device="cuda:0")) == ("torch", "none", "bfloat16")
    assert summary(choose(with_blocks, flags=frozenset({"avx2"}))) == ("torch", "none", "float32")
    assert summary(choose(with_blocks, kernels="torch")) == ("torch", "none", "float32")
    assert summary(choose(write_folder(tmp_path / "odd"))) == ("torch", "none", "float32")


@pytest.mark.parametrize("quantization", ["int8", "int4", "none"])
def test_a_quantization_of_ours_is_kept(folder: Path, with_blocks: Path, quantization: str) -> None:
    for checkpoint in (folder, with_blocks):
        assert choose(checkpoint, quantization=quantization).quantization == quantization


@pytest.mark.parametrize(
    ("stored", "wanted", "chosen"),
    [
        ("bfloat16", "auto", ("native", "bfloat16")),
        ("float32", "auto", ("native", "float32")),
        ("float16", "auto", ("native", "float32")),
        ("float32", "bfloat16", ("native", "bfloat16")),
        ("bfloat16", "float32", ("native", "float32")),
        ("bfloat16", "float16", ("torch", "float16")),
    ],
)
def test_auto_dtype_keeps_every_weight_as_it_is(
    tmp_path: Path, stored: str, wanted: str, chosen: tuple[str, str]
) -> None:
    execution = choose(write_native_folder(tmp_path / "m", dtype=stored), dtype=wanted)
    assert (execution.kernels, execution.dtype) == chosen


@pytest.mark.parametrize(
    ("fields", "flags", "reason"),
    [
        ({"device": "cuda:0"}, FLAGS, "they run on CPUs, not on cuda:0"),
        ({}, frozenset({"avx2", "fma"}), "this CPU lacks f16c"),
        ({"kernels": "torch"}, FLAGS, "the entry says kernels: torch"),
        ({"dtype": "float16"}, FLAGS, "they do not know dtype float16"),
    ],
)
@pytest.mark.parametrize("quantization", ["int8", "int4", "gguf"])
def test_what_needs_the_native_kernels_is_refused_without_them(
    with_blocks: Path, quantization: str, fields: dict[str, str], flags: frozenset[str], reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(with_blocks, quantization=quantization, flags=flags, **{"device": "cpu"} | fields)
    assert caught.value.param == "quantization"
    assert reason in caught.value.message
    assert "use quantization: none" in caught.value.message


def test_native_kernels_cannot_be_forced_on_a_model_that_they_do_not_compute(tmp_path: Path) -> None:
    config = NATIVE_LLAMA | {"hidden_act": "relu"}
    odd = write_native_folder(tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match="they do not support activation 'relu'; use kernels: auto"
    ) as caught:
        choose(odd, kernels="native")
    assert caught.value.param == "kernels"
    with pytest.raises(ConfigError, match="they do not know quantization bnb-nf4"):
        choose(odd, kernels="native", quantization="bnb-nf4")
    with pytest.raises(ConfigError, match="activation 'relu'"):
        choose(odd, quantization="int4")


def test_a_checkpoint_that_lacks_a_tensor_is_not_for_the_native_kernels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the checkpoint has no model\.norm\.weight"):
        choose(write_folder(tmp_path / "cut", NATIVE_LLAMA), kernels="native")


def test_gguf_blocks_are_refused_where_there_are_none(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no GGUF file with tensors in Q4_0, Q4_1 or Q8_0"):
        choose(folder, quantization="gguf")


def test_without_numba_torch_computes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_numba", lambda: False)
    assert choose(folder).kernels == "torch"
    with pytest.raises(ConfigError, match="numba package is not installed"):
        choose(folder, quantization="int8")


def test_the_choice_on_a_cpu_is_logged_with_its_reason(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    choose(folder)
    choose(folder, flags=frozenset())
    choose(folder, device="cuda:0")
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "m: native CPU kernels, quantization none, bfloat16"
    assert "torch and not the native CPU kernels (this CPU lacks avx2, f16c, fma)" in second


def test_the_choice_says_where_the_quantization_comes_from(folder: Path, with_blocks: Path) -> None:
    assert choose(folder).why == "auto: the weights as they come"
    assert choose(with_blocks).why == "auto: the GGUF file's own blocks"
    assert choose(folder, quantization="int8").why == "as the entry says"
    assert choose(folder, kernels="torch").why == (
        "auto: the weights as they come; torch, since the entry says kernels: torch"
    )
    assert "torch, since the native kernels run on CPUs" in choose(folder, device="cuda:0").why


def test_bitsandbytes_computes_with_torch(folder: Path) -> None:
    assert summary(choose(folder, quantization="bnb-nf4")) == ("torch", "bnb-nf4", "float32")
    assert not needs_native(ModelSpec(name="m", source="s", quantization="bnb-nf4"))
    assert needs_native(ModelSpec(name="m", source="s", quantization="int4"))
    assert needs_native(ModelSpec(name="m", source="s", kernels="native"))


def test_torch_takes_bfloat16_on_a_cpu_only_where_the_cpu_is_fast_with_it() -> None:
    fast = frozenset({"avx512_bf16"})
    assert resolve_dtype("auto", "bfloat16", "cpu", frozenset()) == "float32"
    assert resolve_dtype("auto", "bfloat16", "cpu", fast) == "bfloat16"
    assert resolve_dtype("auto", "float32", "cpu", fast) == "float32"
    assert resolve_dtype("auto", "float16", "cuda:0", frozenset()) == "float16"
    assert resolve_dtype("auto", None, "cuda:0", frozenset()) == "bfloat16"
    assert resolve_dtype("float16", "bfloat16", "cpu", frozenset()) == "float16"
