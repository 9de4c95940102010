"""Keeps the blocks of a converted GGUF file beside the weights that transformers made of them.

A block matrix is kept only if its values, rounded to bfloat16, are those of the converted tensor: names and
row order are thereby checked for every file, and a mistake costs memory, never a wrong answer. Part of a
conversion; knows no cache.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.gguf import GgufHeader
from inference_server.checkpoints.headers import SINGLE_NAME, read_header
from inference_server.checkpoints.native import native_shape, native_support
from inference_server.checkpoints.native_weights import native_weights
from inference_server.loading.blocks import BLOCK_INPUTS, BlockMatrix
from inference_server.loading.blocks_file import write_blocks
from inference_server.loading.gguf_blocks import is_in_blocks, mapped, read_block_tensor

# llama.cpp stores the rows of these so that rotary pairs are neighbours; transformers keeps halves apart.
_ROTARY_PAIRS = {"llama": ("q_proj", "k_proj")}
_BLOCKS_AT_ONCE = 1024  # values that stay in the cache, too few for torch to wake other threads
logger = logging.getLogger(__name__)


def convert_blocks(gguf: Path, header: GgufHeader, out: Path) -> None:
    """Write the blocks of `gguf` into `out`, which holds its converted config and weights already.

    Models that the native kernels cannot run get none: nothing would read them.
    """
    config = read_config(out)
    path = out / SINGLE_NAME
    if native_support(config) is not None or not path.exists():
        return
    from safetensors import safe_open

    kept: dict[str, BlockMatrix] = {}
    sources = _gguf_names(header, config)
    with safe_open(path, framework="pt") as converted, mapped(gguf) as data:
        for name in read_header(path):
            source = header.tensors.get(sources.get(name, ""))
            if source is None or not is_in_blocks(source):
                continue
            matrix = _matrix(data, header, sources[name], name, config)
            if matrix is not None and _is_the_same(matrix, converted.get_tensor(name)):
                kept[name] = matrix
            else:
                logger.warning("%s: its blocks differ from the converted weights; it stays dense", name)
    write_blocks(out, kept)


def _gguf_names(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, str]:
    """The model's matrices by their names here → in the file, by the table that transformers uses too."""
    import gguf

    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if header.architecture not in architectures:
        return {}
    table = gguf.get_tensor_name_map(architectures[header.architecture], native_shape(config).num_layers)
    weights = native_weights(config, quantization="none", dtype="bfloat16", block_bits={})
    names = [part for matrix in weights.matrices() for part in matrix.parts]
    found = {name: table.get_name(name.removesuffix(".weight")) for name in names}
    return {name: f"{source}.weight" for name, source in found.items() if source is not None}


def _matrix(
    data: mmap.mmap, header: GgufHeader, source: str, name: str, config: Mapping[str, Any]
) -> BlockMatrix | None:
    """The matrix with its rows in transformers' order, or None if it cannot be held in blocks of ours."""
    try:
        matrix = read_block_tensor(data, header.tensors[source])
    except ValueError:
        return None
    projection = name.split(".")[-2]
    if projection not in _ROTARY_PAIRS.get(header.architecture, ()):
        return matrix
    shape = native_shape(config)
    num_heads = shape.num_heads if projection == "q_proj" else shape.num_kv_heads
    return (
        _with_rows(matrix, _halves_apart(matrix.rows, num_heads))
        if matrix.rows % (2 * num_heads) == 0
        else None
    )


def _halves_apart(rows: int, num_heads: int) -> npt.NDArray[np.int64]:
    """For each row of a projection as transformers has it: its place in the file."""
    return np.arange(rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _with_rows(matrix: BlockMatrix, order: npt.NDArray[np.int64]) -> BlockMatrix:
    minimums = matrix.minimums[order] if matrix.minimums is not None else None
    return BlockMatrix(matrix.bits, matrix.codes[order], matrix.scales[order], minimums)


def _is_the_same(matrix: BlockMatrix, converted: Any) -> bool:
    """Whether the blocks, rounded to bfloat16, are the converted tensor."""
    import torch

    if tuple(converted.shape) != (matrix.rows, matrix.columns):
        return False
    codes = torch.from_numpy(matrix.codes).view(-1, BLOCK_INPUTS)
    scales = torch.from_numpy(matrix.scales).view(-1, 1)
    minimums = torch.from_numpy(matrix.minimums).view(-1, 1) if matrix.minimums is not None else None
    wanted = converted.view(-1, BLOCK_INPUTS)
    for first in range(0, codes.shape[0], _BLOCKS_AT_ONCE):
        part = slice(first, first + _BLOCKS_AT_ONCE)
        values = codes[part].float().mul_(scales[part].float())
        if minimums is not None:
            values.add_(minimums[part].float())
        if not torch.equal(values.to(torch.bfloat16), wanted[part]):
            return False
    return True
