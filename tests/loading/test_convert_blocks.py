"""A GGUF file's blocks are kept exactly, under transformers' names and in transformers' row order."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inference_server.checkpoints.block_headers import BLOCKS_NAME, block_bits
from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.gguf import read_gguf_header
from inference_server.checkpoints.native import native_support
from inference_server.checkpoints.native_weights import native_weights
from inference_server.loading import convert_blocks
from inference_server.loading.blocks_file import read_blocks
from inference_server.loading.convert import convert_gguf
from inference_server.loading.gguf_blocks import is_in_blocks, mapped, read_block_tensor
from tests.loading.gguf_files import Q4_0, Q4_1, Q5_0, Q8_0, write_gguf


def converted(tmp_path: Path, **options: object) -> Path:
    path = write_gguf(tmp_path / "tiny.gguf", heads=2, **options)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    convert_gguf(path, tmp_path / "out", lambda *_: None)
    return tmp_path / "out"


def matrix_names(folder: Path) -> set[str]:
    config = read_config(folder)
    assert native_support(config) is None
    weights = native_weights(config, quantization="none", dtype="bfloat16", block_bits={})
    return {part for matrix in weights.matrices() for part in matrix.parts}


def assert_same_as_dense(folder: Path) -> None:
    dense = load_file(folder / "model.safetensors")
    for name, matrix in read_blocks(folder).items():
        assert torch.equal(torch.from_numpy(matrix.dequantize()).to(torch.bfloat16), dense[name]), name


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_every_matrix_in_blocks_is_kept_and_is_the_converted_tensor(
    tmp_path: Path, architecture: str
) -> None:
    kinds = {"token_embd": Q8_0, "attn_q": Q4_0, "attn_k": Q4_1, "attn_v": Q8_0, "ffn_down": Q4_0}
    folder = converted(tmp_path, architecture=architecture, kinds=kinds)
    assert set(read_blocks(folder)) == matrix_names(folder)
    assert_same_as_dense(folder)
    bits = block_bits(folder)
    assert bits["model.embed_tokens.weight"] == bits["model.layers.0.self_attn.v_proj.weight"] == 8
    assert bits["model.layers.1.self_attn.q_proj.weight"] == bits["model.layers.1.mlp.up_proj.weight"] == 4
    assert {name: matrix.bits for name, matrix in read_blocks(folder).items()} == bits


def test_other_types_stay_dense_only(tmp_path: Path) -> None:
    folder = converted(tmp_path, kinds={"ffn_down": Q5_0})
    assert matrix_names(folder) - set(read_blocks(folder)) == {
        f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)
    }


def test_a_model_that_the_native_kernels_do_not_run_gets_no_blocks(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", heads=4)  # heads of 16
    (tmp_path / "out").mkdir()
    convert_gguf(path, tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out" / BLOCKS_NAME).exists()
    assert len(read_blocks(tmp_path / "out")) == 0


def test_blocks_whose_rows_would_be_in_another_order_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(convert_blocks, "_ROTARY_PAIRS", {})
    folder = converted(tmp_path)
    lost = matrix_names(folder) - set(read_blocks(folder))
    assert {name.split(".")[-2] for name in lost} == {"q_proj", "k_proj"}
    assert_same_as_dense(folder)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warned if "it stays dense" in text]) == len(lost) == 4


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0])
def test_a_tensor_is_read_as_the_gguf_package_reads_it(
    tmp_path: Path, kind: gguf.GGMLQuantizationType
) -> None:
    values = np.random.default_rng(1).standard_normal((6, 96)).astype(np.float32)
    values[2, 32:64] = 0  # a block without a scale
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    data = gguf.quants.quantize(values, kind)
    writer.add_tensor("odd.weight", np.zeros(5, dtype=np.float32))
    writer.add_tensor("x.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf_header(path).tensors["x.weight"]
    assert is_in_blocks(tensor)
    assert not is_in_blocks(read_gguf_header(path).tensors["odd.weight"])
    with mapped(path) as raw:
        matrix = read_block_tensor(raw, tensor)
    np.testing.assert_array_equal(matrix.dequantize(), gguf.quants.dequantize(data, kind))


def test_a_tensor_beyond_the_end_of_the_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", heads=2)
    tensor = read_gguf_header(path).tensors["blk.1.ffn_down.weight"]
    with path.open("r+b") as file:
        file.truncate(tensor.start + 10)
    with mapped(path) as raw, pytest.raises(ValueError, match="beyond the end"):
        read_block_tensor(raw, tensor)
