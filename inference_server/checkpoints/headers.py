"""Safetensors headers: names, types, shapes and bytes of a checkpoint's tensors, without reading the tensors.

Format: 8-byte little-endian header length, JSON header, data (github.com/huggingface/safetensors). Checks
that each file is whole. Knows nothing of models or of where the files came from.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference_server.errors import FetchFailed

MAX_HEADER_BYTES = 32 * 1024 * 1024  # room for some 200 000 tensors in one file
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# bits per element
_DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as it lies on disk; `dtype` in safetensors' words ("BF16", "F32", "U8" …)."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and validate one file's header.

    Raises:
        FetchFailed: the file is missing, damaged, cut short or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES + 1
            if length > MAX_HEADER_BYTES:
                raise FetchFailed(f"{path.name} is damaged: no valid safetensors header")
            header = file.read(length)
        size = path.stat().st_size
    except OSError as error:
        raise FetchFailed(f"{path.name} cannot be read: {error.strerror}") from error
    return _tensors(path.name, header, size - 8 - length)


def _tensors(name: str, header: bytes, num_data_bytes: int) -> dict[str, TensorInfo]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {key: msgspec.json.decode(value, type=_Entry) for key, value in raw.items()}
        infos = {key: _tensor(entry) for key, entry in entries.items()}
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise FetchFailed(f"{name} is damaged: its safetensors header does not parse") from error
    expected = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if num_data_bytes != expected:
        raise FetchFailed(
            f"{name} is damaged or incomplete: {num_data_bytes} bytes of tensors, not {expected}"
        )
    return infos


def _tensor(entry: _Entry) -> TensorInfo:
    start, end = entry.data_offsets
    bits = _DTYPE_BITS[entry.dtype] * math.prod(entry.shape)
    if start < 0 or min(entry.shape, default=0) < 0 or (end - start) * 8 != bits:
        raise ValueError("offsets do not match the shape")
    return TensorInfo(dtype=entry.dtype, shape=entry.shape, nbytes=end - start)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the checkpoint; () if it has none.

    Where there are both, the single file counts and not the index: so transformers chooses, which loads them.

    Raises:
        FetchFailed: the sharded index is damaged or names a file outside the folder.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if single.is_file():
        return (single,)
    if not index.is_file():
        return ()
    try:
        names = sorted(set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()))
    except (msgspec.MsgspecError, OSError) as error:
        raise FetchFailed(f"{INDEX_NAME} is damaged") from error
    if any(Path(name).name != name or "\\" in name for name in names):
        raise FetchFailed(f"{INDEX_NAME} names files outside its folder")
    return tuple(folder / name for name in names)


def read_checkpoint(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a folder, sharded or not; empty when it holds no safetensors.

    Raises:
        FetchFailed: a shard is missing or damaged.
    """
    tensors: dict[str, TensorInfo] = {}
    for path in weight_files(folder):
        tensors.update(read_header(path))
    return tensors
