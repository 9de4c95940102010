"""From a prepared folder to the kernels' `Model`: reads tensors, fuses, quantizes, packs into one arena.

Tensors are read one matrix at a time, so that a load needs little more memory than the packed model. Knows
the names that transformers gives the tensors of the supported families.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from inference_server.checkpoints.block_headers import block_bits
from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.headers import weight_files
from inference_server.checkpoints.native_weights import (
    ALIGNMENT,
    BFLOAT16,
    BITS_4,
    BITS_8,
    FLOAT32,
    Matrix,
    NativeWeights,
    aligned,
    native_weights,
)
from inference_server.errors import ModelLoadFailed
from inference_server.execution.native.architecture import Architecture, rotary_table
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
    ROPE,
    WINDOW,
    Model,
)
from inference_server.execution.native.packing import pack_blocks, pack_dense
from inference_server.loading.blocks import BlockMatrix, quantize_4_bits, quantize_8_bits

_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
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


def load_native(
    folder: Path,
    config: Any,
    architecture: Architecture,
    *,
    quantization: str,
    dtype: torch.dtype,
    blocks: Mapping[str, BlockMatrix],
    max_model_len: int,
    num_threads: int,
    on_progress: OnProgress,
) -> Model:
    """Read and pack a model. `blocks` are tensors that come quantized; they are kept as they are.

    Raises:
        ModelLoadFailed: the checkpoint lacks a tensor or has one of another shape.
    """
    planned = native_weights(
        read_config(folder),
        quantization=quantization,
        dtype=str(dtype).removeprefix("torch."),
        block_bits=block_bits(folder) if blocks else {},
    )
    with TensorFolder(folder) as tensors:
        plans = _in_arena_order(planned)
        arena, matrices = _pack_all(plans, tensors, blocks, dtype, num_threads, on_progress)
        vectors = _Vectors()
        layers = _layers(architecture, tensors, vectors)
        final_norm = vectors.add(tensors.get(_FINAL_NORM), architecture.norm_offset)
    ropes = {name: rotary_table(config, name, max_model_len) for name in dict.fromkeys(architecture.ropes)}
    offsets = dict(zip(ropes, np.cumsum([0, *(table.size for table in ropes.values())]), strict=False))
    layers[:, ROPE] = [offsets[name] for name in architecture.ropes]
    return Model(
        arena=arena,
        matrices=matrices,
        vectors=vectors.array(),
        rope=np.concatenate([table.reshape(-1) for table in ropes.values()]),
        layers=layers,
        embedding=0,
        head=0 if architecture.is_tied else 1,
        final_norm=final_norm,
        hidden_size=architecture.hidden_size,
        num_heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=architecture.intermediate_size,
        activation=architecture.activation,
        norm_epsilon=architecture.norm_epsilon,
        attention_scale=architecture.attention_scale,
        embedding_scale=float(torch.tensor(architecture.embedding_scale).to(dtype)),
    )


def _in_arena_order(weights: NativeWeights) -> list[Matrix]:
    """Embedding, head if it is another, then four per layer: the order of `Model.matrices`."""
    ends = [weights.embedding] if weights.head is weights.embedding else [weights.embedding, weights.head]
    layers = [(layer.qkv, layer.attention_out, layer.gate_up, layer.down) for layer in weights.layers]
    return [*ends, *itertools.chain.from_iterable(layers)]


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


def _pack_all(
    plans: list[Matrix],
    tensors: TensorFolder,
    blocks: Mapping[str, BlockMatrix],
    dtype: torch.dtype,
    num_threads: int,
    on_progress: OnProgress,
) -> tuple[np.ndarray, np.ndarray]:
    """The arena and `Model.matrices`. numpy releases the GIL in most of this, so two threads share it."""
    offsets = np.cumsum([0, *(aligned(plan.num_bytes) for plan in plans)])
    arena = _aligned(int(offsets[-1]))

    def pack(plan: Matrix, offset: int) -> None:
        packed = _packed(plan, tensors, blocks, dtype)
        arena[offset : offset + packed.size] = packed

    with ThreadPoolExecutor(num_threads) as pool:
        jobs: list[Future[None]] = [
            pool.submit(pack, plan, int(offset)) for plan, offset in zip(plans, offsets, strict=False)
        ]
        for done, job in enumerate(jobs):
            job.result()
            on_progress((done + 1) / len(jobs))
    rows = [(plan.format, int(at), plan.rows, plan.columns) for plan, at in zip(plans, offsets, strict=False)]
    return arena, np.array(rows, dtype=np.int64)


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


def _aligned(num_bytes: int) -> np.ndarray:
    """Uninitialised bytes that begin on a cache line."""
    memory = np.empty(num_bytes + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + num_bytes]
