"""The header of a GGUF file: metadata, and where the tensors lie. Reads no tensor, imports no numpy.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Arrays
(vocabulary, merges) are counted, not kept: they make other readers slow.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference_server.errors import FetchFailed

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]
PREAMBLE = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata entries
_ARRAY_HEAD = struct.Struct("<IQ")  # element type, count
_MAX_DIMS = 8

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """Stands for an array of this many elements."""

    count: int


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its type by ggml's number, its shape as torch would name it, where its data begins."""

    kind: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """`spans` are the byte ranges of the metadata entries; the tensor table lies at `tensor_table`."""

    version: int
    metadata: dict[str, Scalar | ArrayLength]
    spans: dict[str, tuple[int, int]]
    tensors: dict[str, GgufTensor]
    num_parameters: int
    tensor_table: tuple[int, int]
    alignment: int
    data_start: int
    file_bytes: int

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header.

    Raises:
        FetchFailed: the file is missing, damaged, cut short or no GGUF file of a known version.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).read()
    except OSError as error:
        raise FetchFailed(f"{path.name} cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise FetchFailed(f"{path.name} is no GGUF file of version 2 or 3, or is damaged") from error


class _Reader:
    """A cursor over the file. Owner: `read_gguf_header`."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> GgufHeader:
        magic, version, num_tensors, num_entries = self._take(PREAMBLE)
        if magic != _MAGIC or version not in _VERSIONS:
            raise ValueError("not GGUF")
        metadata, spans = self._metadata(num_entries)
        table_start = self._at
        tensors = self._tensor_table(num_tensors)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ValueError("bad alignment")
        if not isinstance(metadata["general.architecture"], str):
            raise ValueError("no architecture")
        data_start = -(-self._at // alignment) * alignment
        tensors = {name: replace(tensor, start=data_start + tensor.start) for name, tensor in tensors.items()}
        if any(tensor.start >= len(self._data) for tensor in tensors.values()):
            raise ValueError("cut short")
        return GgufHeader(
            version=version,
            metadata=metadata,
            spans=spans,
            tensors=tensors,
            num_parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
            tensor_table=(table_start, self._at),
            alignment=alignment,
            data_start=data_start,
            file_bytes=len(self._data),
        )

    def _metadata(
        self, num_entries: int
    ) -> tuple[dict[str, Scalar | ArrayLength], dict[str, tuple[int, int]]]:
        metadata: dict[str, Scalar | ArrayLength] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(num_entries):
            start = self._at
            key = self._string()
            metadata[key] = self._value(self._take(_U32)[0])
            spans[key] = (start, self._at)
        return metadata, spans

    def _value(self, kind: int) -> Scalar | ArrayLength:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        value: int | float | bool = self._take(_SCALARS[kind])[0]
        return value

    def _skip_array(self) -> ArrayLength:
        kind, count = self._take(_ARRAY_HEAD)
        if kind == _STRING:
            for _ in range(count):
                self._skip(_U64.unpack_from(self._data, self._at)[0] + _U64.size)
        else:
            self._skip(_SCALARS[kind].size * count)
        return ArrayLength(count)

    def _tensor_table(self, num_tensors: int) -> dict[str, GgufTensor]:
        """The tensors, each with `start` counted from the beginning of the data section."""
        tensors: dict[str, GgufTensor] = {}
        for _ in range(num_tensors):
            name = self._string()
            num_dims = self._take(_U32)[0]
            if num_dims > _MAX_DIMS:
                raise ValueError("too many dimensions")
            sizes = [int(self._take(_U64)[0]) for _ in range(num_dims)]  # the fastest first
            kind = self._take(_U32)[0]
            tensors[name] = GgufTensor(kind, tuple(reversed(sizes)), self._take(_U64)[0])
        return tensors

    def _string(self) -> str:
        length = self._take(_U64)[0]
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode()

    def _take(self, layout: struct.Struct) -> tuple[Any, ...]:
        values = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return values

    def _skip(self, num_bytes: int) -> None:
        if self._at + num_bytes > len(self._data):
            raise ValueError("cut short")
        self._at += num_bytes
