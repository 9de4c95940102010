"""A file that holds a model as the kernels read it: written once, mapped into memory ever after.

Layout: the arena of packed matrices, from the first byte on so that it can be mapped on huge pages; float32
vectors; the int64 table of layers; a footer with their sizes and a digest of all but the arena. A file that
was cut short has no footer. Where it lies and when it is outdated is `checkpoints/packed.py`'s matter.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import secrets
import struct
import threading
import weakref
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from inference_server.checkpoints.packed import sweep, unfinished_path
from inference_server.execution.native.model import NUM_LAYER_FIELDS

OnProgress = Callable[[float], None]
_FOOTER = struct.Struct("<QQQ16s8s")  # bytes of arena, vectors and layers; digest; magic
_MAGIC = b"HLXPACK1"
_MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it
_POPULATED_AT_ONCE = 64 << 20
logger = logging.getLogger(__name__)


class PackedFile:
    """An open packed file. It can be mapped for as long as this lives, even after it was removed."""

    def __init__(self, file: BinaryIO, arena_bytes: int, vectors: np.ndarray, layers: np.ndarray) -> None:
        """Owns the file. vectors: float32 [n]; layers: int64 [num_layers, NUM_LAYER_FIELDS]."""
        self._file = file
        weakref.finalize(self, file.close)
        self._arena_bytes = arena_bytes
        self.vectors = vectors
        self.layers = layers

    @classmethod
    def open(cls, path: Path, arena_bytes: int) -> PackedFile | None:
        """The file at `path`, or None if there is none, or none that is whole and has such an arena."""
        try:
            file = path.open("rb")
        except OSError:
            return None
        try:
            vectors, layers = _read_tail(file.fileno(), arena_bytes)
        except (OSError, ValueError, struct.error) as error:
            file.close()
            logger.warning("%s in the cache is damaged (%s); it is written anew", path.name, error)
            return None
        return cls(file, arena_bytes, vectors, layers)

    def map_arena(self, on_progress: OnProgress = lambda fraction: None) -> np.ndarray:
        """The packed matrices, uint8 [arena_bytes]: pages of the file, which all who map it share.

        The mapping is writable, because compiled kernels tell read-only arrays apart, but private. It ends
        with the last array over it.

        Raises:
            OSError: the file cannot be read, or memory may not be had.
        """
        memory = mmap.mmap(self._file.fileno(), self._arena_bytes, access=mmap.ACCESS_COPY)
        _advise(memory, mmap.MADV_HUGEPAGE, 0, self._arena_bytes)
        for start in range(0, self._arena_bytes, _POPULATED_AT_ONCE):
            end = min(self._arena_bytes, start + _POPULATED_AT_ONCE)
            _advise(memory, _MADV_POPULATE_READ, start, end - start)
            on_progress(end / self._arena_bytes)
        return np.frombuffer(memory, dtype=np.uint8)


class PackedWriter:
    """Writes one packed file under another name until it is whole. Several threads may write pieces."""

    def __init__(self, path: Path) -> None:
        """Several machines may share the cache folder, so that a process id would not tell writers apart.

        Raises:
            OSError: the file cannot be made.
        """
        self._path = path
        self._unfinished = unfinished_path(path, secrets.token_hex(8))
        self._file = self._unfinished.open("x+b", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # until it is closed: nobody else may sweep it away

    def write(self, offset: int, piece: np.ndarray) -> None:
        """Write the bytes of a contiguous array.

        Raises:
            OSError: the disk is full or fails.
        """
        rest = memoryview(piece.reshape(-1).data).cast("B")
        while rest:
            written = os.pwrite(self._file.fileno(), rest, offset)
            offset, rest = offset + written, rest[written:]

    def finish(self, arena_bytes: int, vectors: np.ndarray, layers: np.ndarray) -> PackedFile:
        """Add what follows the arena and hand the file over; a thread brings it to the disk and names it.

        Raises:
            OSError: the disk is full or fails.
        """
        self.write(arena_bytes, np.frombuffer(_tail(arena_bytes, vectors, layers), dtype=np.uint8))
        file = self._unfinished.open("rb")
        threading.Thread(target=self._publish, name="packed-file", daemon=True).start()
        return PackedFile(file, arena_bytes, vectors, layers)

    def discard(self) -> None:
        """Remove what was written."""
        self._unfinished.unlink(missing_ok=True)
        self._file.close()

    def _publish(self) -> None:
        """Only what is on the disk may have its name: after a power cut the other name is left."""
        try:
            os.fsync(self._file.fileno())
            self._unfinished.rename(self._path)
            sweep(self._path)
        except OSError as error:
            logger.warning("%s could not be kept in the cache: %s", self._path.name, error.strerror)
            self._unfinished.unlink(missing_ok=True)
        finally:
            self._file.close()


def _tail(arena_bytes: int, vectors: np.ndarray, layers: np.ndarray) -> bytes:
    tables = vectors.tobytes() + layers.tobytes()
    sizes = (arena_bytes, vectors.nbytes, layers.nbytes)
    return tables + _FOOTER.pack(*sizes, _digest(tables, sizes), _MAGIC)


def _digest(tables: bytes, sizes: tuple[int, int, int]) -> bytes:
    return blake2b(tables + repr(sizes).encode(), digest_size=16).digest()


def _read_tail(file: int, arena_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and layers.

    Raises:
        ValueError, OSError, struct.error: the file is not what it should be.
    """
    end = os.fstat(file).st_size - _FOOTER.size
    if end < arena_bytes:
        raise ValueError("it is too short")
    *sizes, digest, magic = _FOOTER.unpack(os.pread(file, _FOOTER.size, end))
    found_arena, vector_bytes, layer_bytes = sizes
    if magic != _MAGIC or found_arena != arena_bytes or arena_bytes + vector_bytes + layer_bytes != end:
        raise ValueError("its sizes do not fit together")
    tables = os.pread(file, end - arena_bytes, arena_bytes)
    if digest != _digest(tables, (found_arena, vector_bytes, layer_bytes)):
        raise ValueError("its tables are not what was written")
    vectors = np.frombuffer(tables[:vector_bytes], dtype=np.float32).copy()
    layers = np.frombuffer(tables[vector_bytes:], dtype=np.int64).copy()
    return vectors, layers.reshape(-1, NUM_LAYER_FIELDS)


def _advise(memory: mmap.mmap, advice: int, start: int, length: int) -> None:
    """madvise(2); an old kernel that does not know the advice maps pages when they are touched."""
    try:
        memory.madvise(advice, start, length)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
