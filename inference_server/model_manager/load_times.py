"""How long models take to load: measured here or in an earlier process, else estimated from their bytes.

Owner of the measurements: the manager (event loop). Kept in one small file of the cache folder, which is
written in a thread; a damaged or missing file is an empty one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import msgspec

from inference_server.checkpoints.cache import write_json
from inference_server.config.catalog import ModelSpec

DEFAULT_BYTES_PER_S = 200e6  # before anything has been measured
BASE_S = 0.5  # a worker's start, whatever it loads
_NEWEST_SHARE = 0.5  # of the last measurement in what is remembered
_MAX_ENTRIES = 1000
logger = logging.getLogger(__name__)


class LoadTime(msgspec.Struct, frozen=True):
    """What is remembered of one model: seconds from launch to ready, and the bytes that were reserved."""

    seconds: float
    num_bytes: int


class LoadTimes:
    """Load times by model, source, revision and format. `file` None: remembered by this process only."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._times = {} if file is None else _read(file)
        self._saving: asyncio.Future[None] | None = None

    def record(self, spec: ModelSpec, seconds: float, num_bytes: int) -> None:
        """A load took so long. Later ones count more than earlier ones."""
        key = _key(spec)
        before = self._times.pop(key, None)
        if before is not None:
            seconds = before.seconds + _NEWEST_SHARE * (seconds - before.seconds)
        self._times[key] = LoadTime(max(0.0, seconds), num_bytes)
        while len(self._times) > _MAX_ENTRIES:
            del self._times[next(iter(self._times))]
        self._save()

    def estimate_s(self, spec: ModelSpec, num_bytes: int) -> float:
        """Seconds that a load of `num_bytes` will take."""
        known = self._times.get(_key(spec))
        return known.seconds if known is not None else BASE_S + num_bytes / self._bytes_per_s()

    def _bytes_per_s(self) -> float:
        seconds = sum(max(0.0, time.seconds - BASE_S) for time in self._times.values())
        num_bytes = sum(time.num_bytes for time in self._times.values())
        return num_bytes / seconds if seconds > 0 and num_bytes > 0 else DEFAULT_BYTES_PER_S

    def _save(self) -> None:
        if self._file is None or (self._saving is not None and not self._saving.done()):
            return  # what is measured meanwhile is written next time
        save = asyncio.get_running_loop().run_in_executor(None, _write, self._file, dict(self._times))
        self._saving = save


def _key(spec: ModelSpec) -> str:
    return "|".join(
        (spec.source, spec.revision or "", spec.quantization, spec.dtype, spec.kernels, spec.device)
    )


def _read(file: Path) -> dict[str, LoadTime]:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=dict[str, LoadTime])
    return {}


def _write(file: Path, times: dict[str, LoadTime]) -> None:
    try:
        write_json(file, times)
    except OSError as error:
        logger.warning("load times could not be written: %s", error.strerror)
