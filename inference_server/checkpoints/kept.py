"""What the cache folder keeps for one model's source: found by looking, without fetching or converting.

Knows the layout of `cache.py` and what the fetching and the preparation leave there; files of older versions
are found, too. A hub repository lies in the Hugging Face cache, which is others' as well, and is not counted.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference_server.checkpoints.cache import locked
from inference_server.checkpoints.digest import known_sha256, text_key
from inference_server.checkpoints.sources import (
    FolderSource,
    GgufFileSource,
    HubSource,
    ScriptedSource,
    Source,
    parse_source,
)
from inference_server.checkpoints.wheel_folder import MODEL_FOLDER


class _Artifact(msgspec.Struct, frozen=True):
    """As much of an artifact's record as tells whose it is."""

    source: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """One folder or file in the cache. `kind` is the folder of the cache that it lies in."""

    kind: str
    path: Path

    @property
    def num_bytes(self) -> int:
        """What it takes on the disk; what it links to is somebody else's."""
        return sum(path.lstat().st_size for path in _files(self.path))


def kept_for(source: str, revision: str | None, cache_dir: Path) -> list[Kept]:
    """Everything that only this source needs, or would need again.

    Raises:
        ConfigError: `source` is none.
    """
    parsed = parse_source(source, revision)
    folders = list(_source_folders(parsed))
    found: list[Kept] = []
    for folder, artifact in _artifacts(cache_dir):
        if artifact.source == _recorded(source):
            found += [Kept("artifacts", folder), *_converted(artifact.sha256, cache_dir)]
            folders += [folder, folder / MODEL_FOLDER]
    if isinstance(parsed, GgufFileSource) and (digest := known_sha256(parsed.path, cache_dir)) is not None:
        found += _converted(digest, cache_dir)
    if isinstance(parsed, ScriptedSource):
        found += _globbed("scripted", f"v*-{text_key(repr(parsed.options))}", cache_dir)
    folders += [kept.path for kept in found]
    prepared = list(_prepared(folders, cache_dir))
    found += prepared
    found += _packed([*folders, *(kept.path for kept in prepared)], cache_dir)
    return list(dict.fromkeys(found))


def model_folder(source: str, revision: str | None, cache_dir: Path) -> Path | None:
    """The folder that a load would read now; None if the model has to be fetched or converted first.

    Raises:
        ConfigError: `source` is none.
    """
    ranks = ("prepared", "converted", "scripted", "artifacts")
    kept = [entry for entry in kept_for(source, revision, cache_dir) if entry.kind in ranks]
    newest_first = reversed(kept)
    ours = [entry.path for entry in sorted(newest_first, key=lambda entry: ranks.index(entry.kind))]
    theirs = _source_folders(parse_source(source, revision))
    paths = itertools.chain.from_iterable((path, path / MODEL_FOLDER) for path in (*ours, *theirs))
    whole = (path for path in paths if (path / "config.json").is_file())
    return next(whole, None)


def delete(kept: Kept, cache_dir: Path) -> None:
    """Remove it, while nobody else writes it. Who still has one of its files open can read on.

    Raises:
        OSError: it cannot be removed.
    """
    name = kept.path.name
    with locked(cache_dir, name if kept.kind == "artifacts" else f"{kept.kind}-{name}"):
        if kept.path.is_dir() and not kept.path.is_symlink():
            shutil.rmtree(kept.path)
        else:
            kept.path.unlink(missing_ok=True)


def _recorded(source: str) -> str:
    """How an artifact's record names a source: project names as the package index normalises them."""
    return re.sub(r"pypi:([^=]+)", lambda match: f"pypi:{re.sub(r'[-_.]+', '-', match[1]).lower()}", source)


def _source_folders(source: Source) -> Iterator[Path]:
    """The folders outside our cache that a load may read."""
    if isinstance(source, FolderSource):
        repository = source.path.absolute()
        yield repository
    elif isinstance(source, HubSource):
        from huggingface_hub import constants

        repository = Path(constants.HF_HUB_CACHE) / f"models--{source.repo.replace('/', '--')}"
    else:
        return
    yield from sorted((repository / "snapshots").glob("*"))


def _artifacts(cache_dir: Path) -> Iterator[tuple[Path, _Artifact]]:
    """Every fetched artifact: its folder and its record."""
    for folder in sorted((cache_dir / "artifacts").glob("*")):
        with suppress(OSError, msgspec.MsgspecError):
            yield folder, msgspec.json.decode((folder / "artifact.json").read_bytes(), type=_Artifact)


def _converted(sha256: str, cache_dir: Path) -> list[Kept]:
    return _globbed("converted", f"{sha256[:32]}-v*", cache_dir) if sha256 else []


def _globbed(kind: str, pattern: str, cache_dir: Path) -> list[Kept]:
    return [Kept(kind, path) for path in sorted((cache_dir / kind).glob(pattern))]


def _prepared(folders: Iterable[Path], cache_dir: Path) -> Iterator[Kept]:
    """Completed folders, which link to the files of the folder that they complete."""
    wanted = {os.path.abspath(folder) for folder in folders}
    for path in sorted((cache_dir / "prepared").glob("*")):
        links = (os.readlink(file) for file in _files(path) if file.is_symlink())
        if any(os.path.dirname(os.path.abspath(link)) in wanted for link in links):
            yield Kept("prepared", path)


def _packed(folders: Iterable[Path], cache_dir: Path) -> Iterator[Kept]:
    """Weights in the layout of the CPU kernels, by the folder that they were packed from."""
    for folder in folders:
        path = cache_dir / "packed" / text_key(os.path.abspath(folder))
        if path.exists():
            yield Kept("packed", path)


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        yield from _files(child)
