"""What workers were seen to need beside weights and KV cache, remembered in the cache folder for later plans.

Owner of `CACHE/memory/`: one small JSON file per model and way of running it. What cannot be read is as good
as absent, and what cannot be written is lost: the next load then measures again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from pathlib import Path

import msgspec

from inference_server import __version__
from inference_server.checkpoints.cache import write_json
from inference_server.checkpoints.digest import text_key
from inference_server.checkpoints.identity import folder_identity
from inference_server.types import EngineSpec, MeasuredOverhead, Speculation

_LIBRARIES = ("torch", "transformers", "numba", "bitsandbytes")
_BYTES_LIMIT = 1 << 50  # no worker holds more; a record that says so is damaged
logger = logging.getLogger(__name__)


class OverheadKey(msgspec.Struct, frozen=True, kw_only=True):
    """What an overhead depends on. `kv_tokens` is as much of the KV cache as a largest step sees."""

    model: str
    device: str
    dtype: str
    quantization: str
    kernels: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_tokens: int
    num_threads: int
    speculation: Speculation | None
    versions: tuple[str, ...]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """One file: the key is there for people who look, and against files that were moved."""

    key: OverheadKey
    overhead: MeasuredOverhead


def overhead_key(spec: EngineSpec) -> OverheadKey:
    """The key of what `spec` loads. Reads the prepared folder's listing.

    Raises:
        FetchFailed: the folder is damaged.
    """
    step_tokens = spec.max_num_batched_tokens + 33 * spec.max_num_seqs  # two tokens and two blocks for each
    return OverheadKey(
        model=folder_identity(Path(spec.folder)),
        device=spec.device,
        dtype=spec.dtype,
        quantization=spec.quantization,
        kernels=spec.kernels,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=min(spec.max_model_len, step_tokens),
        kv_tokens=min(spec.kv_cache_tokens, step_tokens),
        num_threads=spec.num_threads,
        speculation=spec.speculation,
        versions=_versions(),
    )


class OverheadStore:
    """The remembered overheads. Safe to use from several threads and processes: files are whole or absent."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "memory"

    def find(self, key: OverheadKey) -> MeasuredOverhead | None:
        """What was measured for `key`, or None."""
        path = self._path(key)
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("%s is ignored (%s); the next load measures again", path, type(error).__name__)
            return None
        if record.key != key or not _is_plausible(record.overhead):
            logger.warning("%s is ignored: it is damaged; the next load measures again", path)
            return None
        return record.overhead

    def remember(self, key: OverheadKey, overhead: MeasuredOverhead) -> None:
        """Keep a measurement in the place of an earlier one."""
        try:
            write_json(self._path(key), _Record(key=key, overhead=overhead))
        except OSError as error:
            logger.warning("the measured memory cannot be remembered: %s", error.strerror)

    def _path(self, key: OverheadKey) -> Path:
        return self._folder / f"{text_key(msgspec.json.encode(key).decode())}.json"


def _is_plausible(overhead: MeasuredOverhead) -> bool:
    parts = (overhead.context_bytes or 0, overhead.workspace_bytes, overhead.host_bytes)
    return all(0 <= num_bytes < _BYTES_LIMIT for num_bytes in parts)


@functools.cache
def _versions() -> tuple[str, ...]:
    return (f"helixflow {__version__}", *(f"{name} {_version(name)}" for name in _LIBRARIES))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
