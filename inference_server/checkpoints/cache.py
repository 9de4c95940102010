"""The cache folder on disk: locks, free space, writes that are whole or absent.

Layout: `artifacts/` fetched files, `converted/` converted checkpoints, `prepared/` folders completed by
links, `scripted/`, `packed/` weights as workers take them, `memory/`, `digests/`, `partial/`
unfinished downloads, `locks/`. Knows nothing of what they mean.
"""

from __future__ import annotations

import errno
import fcntl
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from inference_server.errors import FetchFailed

_MIB = 1024 * 1024
_SPARE_BYTES = 64 * _MIB  # left free for everybody else


@contextmanager
def locked(cache_dir: Path, key: str) -> Iterator[None]:
    """Hold the entry `key` against other processes; waits for them. Released by the kernel if we die."""
    folder = cache_dir / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends well and disappears when it does not.

    The caller holds the lock of `final`, so a leftover of a killed process can be swept away first.
    """
    staging = final.with_name(f".{final.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        shutil.rmtree(final, ignore_errors=True)
        staging.rename(final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write one JSON file, whole or not at all; threads, processes and machines may write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        staging.write_bytes(msgspec.json.encode(value))
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse before work starts if the disk cannot hold the result.

    Raises:
        FetchFailed: fewer than `needed_bytes` are free; the message has both numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes + _SPARE_BYTES > free_bytes:
        raise _disk_full(needed_bytes, free_bytes)


@contextmanager
def reporting_full_disk(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn "no space left on device" inside the block into a clear error.

    Raises:
        FetchFailed: the disk or the quota was full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(needed_bytes, shutil.disk_usage(folder).free) from error


def _disk_full(needed_bytes: int, free_bytes: int) -> FetchFailed:
    return FetchFailed(
        f"the disk that holds the cache is full: {needed_bytes / _MIB:.0f} MiB needed, "
        f"{free_bytes / _MIB:.0f} MiB free (HELIXFLOW_CACHE names another folder)"
    )
