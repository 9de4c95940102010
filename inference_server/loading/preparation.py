"""One preparation job, from the source text of models.yaml to a folder that a worker can load.

Fetch, inspect, convert if need be, complete; each result is cached, so the next start only looks. Torch and
transformers are imported only when there is something to convert. Knows no device and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inference_server.checkpoints.block_headers import block_bits
from inference_server.checkpoints.cache import locked, new_folder
from inference_server.checkpoints.digest import text_key
from inference_server.checkpoints.facts import read_json
from inference_server.checkpoints.fetch import Fetched, fetch
from inference_server.checkpoints.headers import read_checkpoint, weight_files
from inference_server.checkpoints.inspection import PICKLED_PATTERNS, inspect_folder
from inference_server.checkpoints.sources import parse_source
from inference_server.errors import FetchFailed, HelixFlowError
from inference_server.loading.convert import CONVERTER_VERSION, convert_gguf, convert_pickled

OnProgress = Callable[[str, float | None], None]

_WEIGHT_PATTERNS = (
    *PICKLED_PATTERNS,
    "*.bin.index.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
)


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
    """Return the folder to load `source` from, doing whatever is not done yet.

    Raises:
        ConfigError: the source is misnamed, or unsafe without a permission of the entry.
        FetchFailed: it could not be fetched, verified or converted.
    """
    cache_dir = cache_dir.expanduser().absolute()
    fetched = fetch(
        parse_source(source, revision),
        cache_dir=cache_dir,
        sha256=sha256,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        on_progress=on_progress,
    )
    if fetched.kind == "gguf":
        folder = _converted_gguf(fetched, cache_dir, on_progress)
    else:
        inspect_folder(fetched.path, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        folder = _completed(fetched.path, cache_dir, trust_remote_code, on_progress)
    inspect_folder(folder, allow_pickle=False, trust_remote_code=trust_remote_code)
    return PreparedFolder(folder=folder, revision=fetched.revision)


def _converted_gguf(fetched: Fetched, cache_dir: Path, on_progress: OnProgress) -> Path:
    key = f"{(fetched.sha256 or '')[:32]}-v{CONVERTER_VERSION}"
    folder = cache_dir / "converted" / key
    with locked(cache_dir, f"converted-{key}"):
        if not _is_whole(folder):
            with new_folder(folder) as staging:
                convert_gguf(fetched.path, staging, on_progress)
    return folder


def _completed(folder: Path, cache_dir: Path, trust_remote_code: bool, on_progress: OnProgress) -> Path:
    """The folder itself if nothing is missing, else one in the cache that links to it and has the rest."""
    needs_weights = _needs_weights(folder)
    needs_tokenizer = not (folder / "tokenizer.json").exists()
    if not needs_weights and not needs_tokenizer:
        return folder
    key = _content_key(folder)
    completed = cache_dir / "prepared" / key
    with locked(cache_dir, f"prepared-{key}"):
        if _is_whole(completed):
            return completed
        with new_folder(completed) as staging:
            _link_files(folder, staging, with_weights=not needs_weights)
            if needs_tokenizer:
                _export_tokenizer(folder, staging, trust_remote_code)
            if needs_weights:
                convert_pickled(folder, staging, on_progress, trust_remote_code=trust_remote_code)
    return completed


def _needs_weights(folder: Path) -> bool:
    return (
        not weight_files(folder) and (read_json(folder / "config.json") or {}).get("model_type") != "scripted"
    )


def _export_tokenizer(folder: Path, out: Path, trust_remote_code: bool) -> None:
    """Save the tokenizer that transformers would use as the one file that the server reads.

    Raises:
        FetchFailed: transformers cannot make one from the files that are there.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        text = tokenizer.backend_tokenizer.to_str()
    except Exception as error:
        raise FetchFailed(
            f"there is no tokenizer.json, and the tokenizer cannot be converted: {type(error).__name__}"
        ) from error
    (out / "tokenizer.json").write_text(text, encoding="utf-8")


def _link_files(folder: Path, out: Path, *, with_weights: bool) -> None:
    for path in folder.iterdir():
        if with_weights or not any(path.match(pattern) for pattern in _WEIGHT_PATTERNS):
            (out / path.name).symlink_to(path)


def _content_key(folder: Path) -> str:
    """Changes with any file of the folder, by name, size and time: no file is read."""
    stats = sorted((path.name, path.stat()) for path in folder.iterdir())
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return f"{text_key(f'{folder} {listing}')}-v{CONVERTER_VERSION}"


def _is_whole(folder: Path) -> bool:
    """A finished folder whose weights are as long as their headers say (a power cut can leave less)."""
    try:
        block_bits(folder)
        return (folder / "tokenizer.json").stat().st_size > 0 and bool(read_checkpoint(folder))
    except (OSError, HelixFlowError):
        return False
