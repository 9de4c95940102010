"""SHA-256 of files, remembered: a file that has not changed since is never read again.

A remembered digest is keyed by path, size, inode and modification time, as build tools do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from inference_server.checkpoints.cache import write_json
from inference_server.errors import FetchFailed


class _Remembered(msgspec.Struct, frozen=True):
    size: int
    inode: int
    mtime_ns: int
    sha256: str


def file_sha256(path: Path) -> str:
    """Read the file and return its hexadecimal SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path, cache_dir: Path) -> str:
    """The file's SHA-256, read only if the file changed since the last call."""
    known = known_sha256(path, cache_dir)
    if known is not None:
        return known
    stat = path.stat()
    digest = file_sha256(path)
    write_json(_record(path, cache_dir), _Remembered(stat.st_size, stat.st_ino, stat.st_mtime_ns, digest))
    return digest


def known_sha256(path: Path, cache_dir: Path) -> str | None:
    """The file's SHA-256 if it is known without reading the file; None also if there is no file."""
    known = _read(_record(path, cache_dir))
    try:
        stat = path.stat()
    except OSError:
        return None
    if known is None or (known.size, known.inode, known.mtime_ns) != (
        stat.st_size,
        stat.st_ino,
        stat.st_mtime_ns,
    ):
        return None
    return known.sha256


def require_sha256(name: str, actual: str, expected: str | None) -> None:
    """Compare with what models.yaml or the index promises.

    Raises:
        FetchFailed: they differ.
    """
    if expected is not None and actual != expected.lower():
        raise FetchFailed(
            f"{name} has SHA-256 {actual}, not {expected}: it is damaged or not the file you meant"
        )


def text_key(text: str) -> str:
    """A short file name for any text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _record(path: Path, cache_dir: Path) -> Path:
    return cache_dir / "digests" / f"{text_key(str(path.resolve()))}.json"


def _read(record: Path) -> _Remembered | None:
    try:
        return msgspec.json.decode(record.read_bytes(), type=_Remembered)
    except (OSError, msgspec.MsgspecError):
        return None
