"""Where weights lie in the cache folder in the form in which workers take them, so that each is made once.

That is a file of weights packed for the CPU kernels, or a checkpoint folder that transformers has quantized.
Layout: `packed/KEY OF THE FOLDER/SCHEME-DTYPE-FINGERPRINT.weights` (or `.checkpoint`), and in `source` the
folder's path. Knows a checkpoint's files by size and time; what a packed file holds is
`execution/native/packed_file.py`'s matter.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from inference_server.checkpoints.block_headers import BLOCKS_NAME
from inference_server.checkpoints.digest import text_key
from inference_server.checkpoints.headers import weight_files

FILE_ENDING, FOLDER_ENDING = ".weights", ".checkpoint"
_UNFINISHED = ".unfinished"
_SOURCE = "source"
logger = logging.getLogger(__name__)


def packed_path(
    cache_dir: Path,
    folder: Path,
    *,
    quantization: str,
    dtype: str,
    layout: str,
    ending: str = FILE_ENDING,
) -> Path:
    """The file or folder for this checkpoint, which may not exist; another one once that or `layout` changes.

    `layout` changes with everything that decides how weights are quantized and packed.

    Raises:
        FetchFailed: the checkpoint's index is damaged.
    """
    files = [folder / "config.json", folder / BLOCKS_NAME, *weight_files(folder)]
    stats = [(path.name, path.stat()) for path in files if path.exists()]
    contents = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    fingerprint = text_key(f"{layout} {contents}")
    return _home(cache_dir, folder) / f"{quantization}-{dtype}-{fingerprint}{ending}"


def packed_files(cache_dir: Path, folder: Path) -> list[Path]:
    """Everything that is kept for this checkpoint folder, in any format; for who removes the model."""
    return sorted(_home(cache_dir, folder).glob("*"))


def has_room(path: Path, num_bytes: int) -> bool:
    """Whether the disk would keep as many bytes free as the file takes."""
    return shutil.disk_usage(path.parent).free >= 2 * num_bytes


def make_home(path: Path, folder: Path) -> None:
    """Make the folder that `path` lies in.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / _SOURCE).write_text(str(folder.absolute()), encoding="utf-8")


def unfinished_path(path: Path, owner: str) -> Path:
    """What the file is called until it is whole. Its writer holds a lock (flock) on it."""
    return path.with_name(f"{path.stem}.{owner}{_UNFINISHED}")


def sweep(path: Path) -> None:
    """Remove what `path`, which is whole, replaces: other versions of it, and what killed writers have left.

    What was made of checkpoint folders that are gone is removed too. Who has a file of it open can read on.
    """
    prefix = path.name.rpartition("-")[0]
    old = [other for other in path.parent.glob(f"{prefix}-*{path.suffix}") if other != path]
    for other in (*old, *_abandoned(path.parent)):
        if other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        else:
            other.unlink(missing_ok=True)
        logger.info("removed %s from the cache: %s has taken its place", other.name, path.name)
    for home in path.parent.parent.iterdir():
        if not _source_exists(home):
            shutil.rmtree(home, ignore_errors=True)


def _home(cache_dir: Path, folder: Path) -> Path:
    return cache_dir / "packed" / text_key(str(folder.absolute()))


def _abandoned(home: Path) -> Iterator[Path]:
    """Unfinished files whose writers are gone: the kernel has taken their locks away."""
    for path in home.glob(f"*{_UNFINISHED}"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        yield path


def _source_exists(home: Path) -> bool:
    try:
        return Path((home / _SOURCE).read_text(encoding="utf-8")).exists()
    except OSError:
        return True  # somebody is about to write it
