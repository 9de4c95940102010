"""Brings a model's packed weights into memory: mapped from the cache, where they are kept, or packed now.

What was packed once is written to the cache and mapped from there, now and ever after: a later load, or the
wake of a sleeping model, reads no tensor. Where it cannot be kept, the weights lie in memory of our own.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference_server.checkpoints.block_headers import block_bits
from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.native_weights import ALIGNMENT, native_weights
from inference_server.checkpoints.packed import has_room, make_home, packed_path
from inference_server.execution.native.architecture import Architecture, rotary_table
from inference_server.execution.native.model import ROPE, Model
from inference_server.execution.native.packed_file import PackedFile, PackedWriter
from inference_server.execution.native.weights import (
    ArenaLayout,
    OnProgress,
    TensorFolder,
    arena_layout,
    check_tied_head,
    pack_matrices,
    read_vectors,
)
from inference_server.loading.blocks import BlockMatrix
from inference_server.loading.blocks_file import read_blocks

_PACKAGE = Path(__file__).parent.parent.parent
_PACKING_SOURCES = (  # whatever decides which bytes stand in a packed file
    "checkpoints/block_headers.py", "checkpoints/native.py", "checkpoints/native_weights.py",
    "execution/admission.py", "execution/native/architecture.py", "execution/native/model.py",
    "execution/native/packed_file.py", "execution/native/packing.py", "execution/native/weights.py",
    "loading/blocks.py", "loading/blocks_file.py", "loading/nibbles.py",
)  # fmt: skip
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NativeLoad:
    """A model in memory. `packed` is the file that its arena is mapped from; None: it is own memory."""

    model: Model
    packed: PackedFile | None


@dataclass(frozen=True, slots=True)
class NativeSource:
    """Where a model's weights come from, and in which format they are packed.

    `cache_dir` None: nothing is kept.
    """

    folder: Path
    architecture: Architecture
    quantization: str
    dtype: torch.dtype
    cache_dir: Path | None = None

    @property
    def dtype_name(self) -> str:
        """E.g. "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def layout(self) -> ArenaLayout:
        """Where its matrices lie in the arena."""
        is_gguf = self.quantization == "gguf"
        planned = native_weights(
            read_config(self.folder),
            quantization=self.quantization,
            dtype=self.dtype_name,
            block_bits=block_bits(self.folder) if is_gguf else {},
        )
        return arena_layout(planned)

    def blocks(self) -> Mapping[str, BlockMatrix]:
        """Tensors that come quantized, and are kept as they are."""
        return read_blocks(self.folder) if self.quantization == "gguf" else {}

    def packed_path(self) -> Path | None:
        """Where its packed file lies, or would."""
        if self.cache_dir is None:
            return None
        return packed_path(
            self.cache_dir,
            self.folder,
            quantization=self.quantization,
            dtype=self.dtype_name,
            layout=packing_key(),
        )


def load_native(
    source: NativeSource, config: Any, *, max_model_len: int, num_threads: int, on_progress: OnProgress
) -> NativeLoad:
    """Map or pack a model's weights.

    Raises:
        ModelLoadFailed: the checkpoint lacks a tensor or has one of another shape.
        OSError: the packed file cannot be mapped.
    """
    layout, path = source.layout(), source.packed_path()
    packed = None if path is None else PackedFile.open(path, layout.num_bytes)
    if packed is not None:
        arena, vectors, layers = packed.map_arena(on_progress), packed.vectors, packed.layers.copy()
        logger.info("mapped the packed weights from the cache")
        return NativeLoad(_model(source, config, layout, arena, vectors, layers, max_model_len), packed)
    pack = functools.partial(_pack, source, layout, num_threads, on_progress)
    packed = None if path is None else _packed_into_file(path, source.folder, layout, pack)
    if packed is not None:
        arena, vectors, layers = packed.map_arena(), packed.vectors, packed.layers.copy()
    else:
        arena = _aligned(layout.num_bytes)
        vectors, layers = pack(functools.partial(_write_to_memory, arena))
    return NativeLoad(_model(source, config, layout, arena, vectors, layers, max_model_len), packed)


@functools.cache
def packing_key() -> str:
    """Changes with every source that decides how weights are quantized and packed."""
    digest = hashlib.sha256()
    for name in _PACKING_SOURCES:
        digest.update((_PACKAGE / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


Write = Callable[[int, np.ndarray], None]
Pack = Callable[[Write], tuple[np.ndarray, np.ndarray]]


def _pack(
    source: NativeSource, layout: ArenaLayout, num_threads: int, on_progress: OnProgress, write: Write
) -> tuple[np.ndarray, np.ndarray]:
    """Pack every matrix to `write`; returns vectors and layers."""
    with TensorFolder(source.folder) as tensors:
        if source.architecture.is_tied:
            check_tied_head(tensors)
        pack_matrices(
            layout,
            tensors,
            source.blocks(),
            source.dtype,
            write=write,
            num_threads=num_threads,
            on_progress=on_progress,
        )
        return read_vectors(source.architecture, tensors)


def _packed_into_file(path: Path, folder: Path, layout: ArenaLayout, pack: Pack) -> PackedFile | None:
    """The file, written now; None where the disk does not take it, which only costs the next load time."""
    try:
        make_home(path, folder)
        if not has_room(path, layout.num_bytes):
            logger.warning("the cache has no room for the packed weights; they are packed at each load")
            return None
        writer = PackedWriter(path)
    except OSError as error:
        logger.warning("packed weights cannot be kept in the cache: %s", error.strerror)
        return None
    try:
        vectors, layers = pack(writer.write)
        return writer.finish(layout.num_bytes, vectors, layers)
    except OSError as error:
        writer.discard()
        logger.warning("packed weights cannot be kept in the cache: %s", error.strerror)
        return None
    except BaseException:
        writer.discard()
        raise


def _write_to_memory(arena: np.ndarray, offset: int, piece: np.ndarray) -> None:
    arena[offset : offset + piece.size] = piece


def _model(
    source: NativeSource,
    config: Any,
    layout: ArenaLayout,
    arena: np.ndarray,
    vectors: np.ndarray,
    layers: np.ndarray,
    max_model_len: int,
) -> Model:
    architecture = source.architecture
    ropes = {
        name: rotary_table(config, name, max_model_len, architecture.head_dim)
        for name in dict.fromkeys(architecture.ropes)
    }
    offsets = dict(zip(ropes, np.cumsum([0, *(table.size for table in ropes.values())]), strict=False))
    layers[:, ROPE] = [offsets[name] for name in architecture.ropes]
    return Model(
        arena=arena,
        matrices=layout.matrices,
        vectors=vectors,
        rope=np.concatenate([table.reshape(-1) for table in ropes.values()]),
        layers=layers,
        embedding=0,
        head=0 if architecture.is_tied else 1,
        final_norm=vectors.size - architecture.hidden_size,
        hidden_size=architecture.hidden_size,
        num_heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=architecture.intermediate_size,
        activation=architecture.activation,
        norm_epsilon=architecture.norm_epsilon,
        attention_scale=architecture.attention_scale,
        embedding_scale=float(torch.tensor(architecture.embedding_scale).to(source.dtype)),
    )


def _aligned(num_bytes: int) -> np.ndarray:
    """Uninitialised bytes that begin on a cache line."""
    memory = np.empty(num_bytes + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + num_bytes]
