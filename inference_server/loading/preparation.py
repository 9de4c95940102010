"""One preparation job, from the source text to a folder that a worker can load. (Being written; signature is final.)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OnProgress = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True)
class PreparedFolder:
    """Holds config.json, safetensors, tokenizer.json and, if the model has one, its chat template."""

    folder: Path
    revision: str | None


def prepare(
    *,
    source: str,
    revision: str | None,
    sha256: str | None,
    cache_dir: Path,
    allow_pickle: bool,
    trust_remote_code: bool,
    on_progress: OnProgress,
) -> PreparedFolder:
    """Fetch, convert, check."""
    raise NotImplementedError
