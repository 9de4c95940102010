"""From a prepared folder to what the kernels read: tensors are fused, quantized and packed, matrix by matrix.

One matrix is read at a time, so that a load needs little more memory than the packed model. Knows
the names that transformers gives the tensors of the supported families; not where the packed bytes go.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from inference_server.checkpoints.headers import weight_files
from inference_server.checkpoints.native_weights import (
    BFLOAT16,
    BITS_4,
    BITS_8,
    EMBEDDING,
    FINAL_NORM,
    FLOAT32,
    HEAD,
    Matrix,
    NativeWeights,
    aligned,
)
from inference_server.errors import ModelLoadFailed
from inference_server.execution.native.architecture import Architecture
from inference_server.execution.native.model import (
    AFTER_ATTENTION_NORM,
    AFTER_MLP_NORM,
    ATTENTION_OUT,
    DOWN,
    GATE_UP,
    INPUT_NORM,
    KEY_NORM,
    MLP_NORM,
    NONE,
    NUM_LAYER_FIELDS,
    QKV,
    QKV_BIAS,
    QUERY_NORM,
    WINDOW,
)
from inference_server.execution.native.packing import pack_blocks, pack_dense
from inference_server.loading.blocks import BlockMatrix, quantize_4_bits, quantize_8_bits

_PREFIXES = ("", "language_model.", "model.language_model.")  # text models inside multimodal checkpoints

OnProgress = Callable[[float], None]


class TensorFolder:
    """The tensors of a folder's safetensors by name, read when asked for. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            self._files.update(dict.fromkeys(file.keys(), file))

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def find(self, name: str) -> torch.Tensor | None:
        """The tensor of this name in a plain text model, wherever the checkpoint has put it."""
        for prefix in _PREFIXES:
            for candidate in (prefix + name, prefix + name.removeprefix("model.")):
                if candidate in self._files:
                    return self._files[candidate].get_tensor(candidate)  # type: ignore[no-any-return]
        return None

    def get(self, name: str) -> torch.Tensor:
        """Like `find`.

        Raises:
            ModelLoadFailed: there is none.
        """
        tensor = self.find(name)
        if tensor is None:
            raise ModelLoadFailed(f"the checkpoint has no tensor {name!r}")
        return tensor


class _Vectors:
    """Norm weights and biases, collected into one float32 array."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(self, tensor: torch.Tensor, offset: float = 0.0) -> int:
        """Append `tensor + offset`; returns where it begins."""
        start = self._size
        self._parts.append((tensor.float() + offset).reshape(-1).numpy())
        self._size += tensor.numel()
        return start

    def array(self) -> np.ndarray:
        """Everything, in order."""
        return np.concatenate(self._parts)


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Where each matrix lies in the arena, in the order of `Model.matrices`."""

    plans: tuple[Matrix, ...]
    offsets: tuple[int, ...]
    num_bytes: int

    @property
    def matrices(self) -> np.ndarray:
        """`Model.matrices`."""
        rows = [
            (plan.format, offset, plan.rows, plan.columns)
            for plan, offset in zip(self.plans, self.offsets, strict=True)
        ]
        return np.array(rows, dtype=np.int64)


def arena_layout(weights: NativeWeights) -> ArenaLayout:
    """Embedding, head if it is another, then four per layer, each on a cache line."""
    ends = [weights.embedding] if weights.head is weights.embedding else [weights.embedding, weights.head]
    layers = [(layer.qkv, layer.attention_out, layer.gate_up, layer.down) for layer in weights.layers]
    plans = (*ends, *itertools.chain.from_iterable(layers))
    *offsets, num_bytes = itertools.accumulate((aligned(plan.num_bytes) for plan in plans), initial=0)
    return ArenaLayout(plans, tuple(offsets), num_bytes)


def check_tied_head(tensors: TensorFolder) -> None:
    """A head that stands beside the embedding it is tied to must be the same, as transformers demands it.

    Raises:
        ModelLoadFailed: it is another one, which transformers would use in spite of the configuration.
    """
    head = tensors.find(HEAD)
    if head is None:
        return
    embedding = tensors.get(EMBEDDING)
    if not torch.equal(head.to(embedding.dtype), embedding):
        raise ModelLoadFailed(
            f"config.json ties the output head to the embedding, but {HEAD} differs from it; "
            "set tie_word_embeddings: false in config.json, or use kernels: torch"
        )


def pack_matrices(
    layout: ArenaLayout,
    tensors: TensorFolder,
    blocks: Mapping[str, BlockMatrix],
    dtype: torch.dtype,
    *,
    write: Callable[[int, np.ndarray], None],
    num_threads: int,
    on_progress: OnProgress,
) -> None:
    """Read, fuse, quantize and pack each matrix, and have its bytes written to its offset in the arena.

    `blocks` are tensors that come quantized; they are kept as they are. numpy releases the GIL in most of
    this, so threads share it.

    Raises:
        ModelLoadFailed: the checkpoint lacks a tensor or has one of another shape.
        OSError: `write` has failed.
    """

    def pack(plan: Matrix, offset: int) -> None:
        write(offset, _packed(plan, tensors, blocks, dtype))

    with ThreadPoolExecutor(num_threads) as pool:
        jobs: list[Future[None]] = [
            pool.submit(pack, plan, offset) for plan, offset in zip(layout.plans, layout.offsets, strict=True)
        ]
        try:
            for done, job in enumerate(jobs):
                job.result()
                on_progress((done + 1) / len(jobs))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_vectors(architecture: Architecture, tensors: TensorFolder) -> tuple[np.ndarray, np.ndarray]:
    """`Model.vectors`, whose last is the final norm, and `Model.layers` without the rotary tables."""
    vectors = _Vectors()
    layers = _layers(architecture, tensors, vectors)
    vectors.add(tensors.get(FINAL_NORM), architecture.norm_offset)
    return vectors.array(), layers


def _layers(architecture: Architecture, tensors: TensorFolder, vectors: _Vectors) -> np.ndarray:
    """`Model.layers`, but for the rotary tables."""
    first = 1 if architecture.is_tied else 2
    layers = np.full((architecture.num_layers, NUM_LAYER_FIELDS), NONE, dtype=np.int64)
    norms = {INPUT_NORM: "input_layernorm", MLP_NORM: "post_attention_layernorm"}
    if architecture.has_branch_norms:
        norms |= {
            AFTER_ATTENTION_NORM: "post_attention_layernorm",
            MLP_NORM: "pre_feedforward_layernorm",
            AFTER_MLP_NORM: "post_feedforward_layernorm",
        }
    if architecture.has_query_key_norms:
        norms |= {QUERY_NORM: "self_attn.q_norm", KEY_NORM: "self_attn.k_norm"}
    for index, fields in enumerate(layers):
        prefix = f"model.layers.{index}."
        for field, name in norms.items():
            fields[field] = vectors.add(tensors.get(f"{prefix}{name}.weight"), architecture.norm_offset)
        if architecture.has_qkv_bias:
            parts = [tensors.get(f"{prefix}self_attn.{part}_proj.bias") for part in ("q", "k", "v")]
            fields[QKV_BIAS] = vectors.add(torch.cat(parts))
        fields[WINDOW] = architecture.windows[index]
        for place, field in enumerate((QKV, ATTENTION_OUT, GATE_UP, DOWN)):
            fields[field] = first + 4 * index + place
    return layers


def _packed(
    plan: Matrix, tensors: TensorFolder, blocks: Mapping[str, BlockMatrix], dtype: torch.dtype
) -> np.ndarray:
    if plan.format in (BITS_8, BITS_4) and all(name in blocks for name in plan.parts):
        joined = _joined([blocks[name] for name in plan.parts])
        _check_shape(plan, (joined.rows, joined.columns))
        return pack_blocks(joined)
    weight = torch.cat([tensors.get(name) for name in plan.parts])
    _check_shape(plan, tuple(weight.shape))
    if plan.format in (FLOAT32, BFLOAT16):
        return pack_dense(weight.to(dtype))
    numbers = weight.float().numpy()
    return pack_blocks(quantize_4_bits(numbers) if plan.format == BITS_4 else quantize_8_bits(numbers))


def _check_shape(plan: Matrix, shape: tuple[int, ...]) -> None:
    if shape != (plan.rows, plan.columns):
        raise ModelLoadFailed(
            f"{plan.name} is {shape} in the checkpoint and {(plan.rows, plan.columns)} in its config.json"
        )


def _joined(parts: list[BlockMatrix]) -> BlockMatrix:
    """One matrix below the other."""
    minimums = [part.minimums for part in parts if part.minimums is not None]
    return BlockMatrix(
        bits=parts[0].bits,
        codes=np.concatenate([part.codes for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        minimums=np.concatenate(minimums) if minimums else None,
    )
