"""What tells one prepared folder's model from another's, wherever the folder lies. Reads no weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from inference_server.checkpoints.block_headers import BLOCKS_NAME
from inference_server.checkpoints.headers import weight_files
from inference_server.errors import FetchFailed


def folder_identity(folder: Path) -> str:
    """A short text that changes with the configuration and with any weight file's name or size.

    Raises:
        FetchFailed: a file of the checkpoint is missing or unreadable.
    """
    digest = hashlib.sha256()
    try:
        digest.update((folder / "config.json").read_bytes())
        for path in (*weight_files(folder), folder / BLOCKS_NAME):
            size = path.stat().st_size if path.name != BLOCKS_NAME or path.exists() else 0
            digest.update(f"\0{path.name}\0{size}".encode())
    except OSError as error:
        raise FetchFailed(f"{error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:16]
