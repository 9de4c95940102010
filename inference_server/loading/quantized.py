"""Checkpoints that transformers quantized while it loaded them: saved once, and read as they are ever after.

Quantizing takes far longer than reading the result: 10 s against 0.4 s for 135 million weights in nf4 on two
cores. Where such a folder lies, and when it is outdated, is `checkpoints/packed.py`'s matter.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_server.checkpoints.cache import locked, new_folder
from inference_server.checkpoints.digest import text_key
from inference_server.checkpoints.packed import FOLDER_ENDING, has_room, make_home, packed_path, sweep

SCHEMES = ("bnb-nf4", "bnb-int8")
_FORMAT = 2  # raise it when what is saved changes: older folders are then not read
_LIBRARIES = ("torch", "transformers", "bitsandbytes")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QuantizedStore:
    """Where the quantized form of the checkpoint `folder` lies, or would: the folder `path`."""

    path: Path
    folder: Path
    cache_dir: Path

    @property
    def is_filled(self) -> bool:
        """Whether it is there."""
        return self.path.is_dir()

    def fill(self, model: Any, num_bytes: int) -> None:
        """Save a model that was just quantized, which takes about `num_bytes`.

        A disk that does not take it costs the next load time, and nothing else.
        """
        try:
            make_home(self.path, self.folder)
            if not has_room(self.path, num_bytes):
                logger.warning("the cache has no room for quantized weights; each load quantizes them anew")
                return
            with (
                locked(self.cache_dir, f"packed-{text_key(str(self.path))}"),
                new_folder(self.path) as staging,
            ):
                model.save_pretrained(staging)
            sweep(self.path)
        except OSError as error:
            logger.warning("quantized weights cannot be kept in the cache: %s", error.strerror or error)


def store_for(
    cache_dir: Path, folder: Path, *, quantization: str, dtype: str, device: str
) -> QuantizedStore | None:
    """The store for one checkpoint and scheme; devices of one kind share it. None: it is not kept.

    Raises:
        FetchFailed: the checkpoint's index is damaged.
    """
    if quantization not in SCHEMES:
        return None
    versions = [importlib.metadata.version(library) for library in _LIBRARIES]
    path = packed_path(
        cache_dir,
        folder,
        quantization=quantization,
        dtype=dtype,
        layout=f"{device.partition(':')[0]} {versions} {_FORMAT}",
        ending=FOLDER_ENDING,
    )
    return QuantizedStore(path, folder, cache_dir)
