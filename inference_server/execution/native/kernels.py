"""The compiled step: made once per version of these sources and processor, and kept on disk.

Numba's own cache looks at the time of one source file only, so it would go on using kernels whose callees
have changed. Ours lies in a folder named after all of the sources that go into a step.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from inference_server.checkpoints import native_weights
from inference_server.execution.native.step import run_step

Step = Callable[..., None]
logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Where compiled kernels are kept: `NUMBA_CACHE_DIR`, or else the user's cache folder."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "helixflow" / "kernels"


def sources_key() -> str:
    """Changes with every source of the kernels, of the formats' numbers in them, and with the compilers."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(native_weights.__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(f"{numba.__version__} {llvmlite.__version__} {np.__version__}".encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def load_step(cache_dir: Path | None = None) -> Step:
    """`step.run_step`, compiled when it is first called with arrays of new types, or read from the cache."""
    folder = (cache_dir or default_cache_dir()) / sources_key()
    llvmlite.binding.initialize_native_asmparser()  # a tile writes one instruction out
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        return numba.njit(  # type: ignore[no-any-return]
            cache=True, nogil=True, boundscheck=False, error_model="numpy"
        )(run_step)
    finally:
        numba.config.CACHE_DIR = before


def warm_up(step: Step, run: Callable[[], Any]) -> float:
    """Call `run`, which calls `step`, and return the seconds; says in the log if it had to be compiled."""
    started_s = time.monotonic()
    run()
    seconds = time.monotonic() - started_s
    hits = sum(step.stats.cache_hits.values())  # type: ignore[attr-defined]
    misses = sum(step.stats.cache_misses.values())  # type: ignore[attr-defined]
    if misses:
        logger.info("compiled the CPU kernels in %.1f s; later starts read them from the cache", seconds)
    elif hits:
        logger.debug("read the CPU kernels from the cache in %.1f s", seconds)
    return seconds
