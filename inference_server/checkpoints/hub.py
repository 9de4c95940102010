"""A repository on the Hugging Face Hub: resolve one commit, fetch what serving needs into its cache.

HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean everywhere.
huggingface_hub is imported where it is used: the server process imports this package and must stay small.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_server.checkpoints.cache import require_space
from inference_server.checkpoints.download import OnProgress
from inference_server.checkpoints.headers import INDEX_NAME, SINGLE_NAME
from inference_server.checkpoints.sources import HubSource
from inference_server.errors import ConfigError, FetchFailed

_SIDE_FILE_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken")
# The pooling and dense layers of a sentence-transformers folder.
_MODULE_FILE = re.compile(r"[0-9]+_[A-Za-z]+/(config\.json|model\.safetensors)")
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth")


def fetch_hub(
    source: HubSource, *, allow_pickle: bool, trust_remote_code: bool, on_progress: OnProgress
) -> tuple[Path, str]:
    """Return the snapshot's folder and its commit. Files that are already there are not asked for again.

    Raises:
        FetchFailed: the Hub refuses, cannot be reached and the cache has no copy, or the disk is full.
        ConfigError: the repository has no weights that may be loaded.
    """
    from huggingface_hub import constants

    on_progress("download", None)
    if constants.HF_HUB_OFFLINE:
        return _cached_snapshot(source, "HF_HUB_OFFLINE is set")
    listing = _list_files(source)
    if listing is None:
        return _cached_snapshot(source, "the Hub cannot be reached")
    commit, sizes = listing
    files = select_files(sizes, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    return _download(source.repo, commit, {name: sizes[name] for name in files}, on_progress), commit


def select_files(sizes: Mapping[str, int], *, allow_pickle: bool, trust_remote_code: bool) -> tuple[str, ...]:
    """Choose what to fetch: side files, modules, chat templates, code if trusted, and one set of weights.

    Raises:
        ConfigError: only weights that may not be loaded.
    """
    top = [name for name in sizes if "/" not in name]
    side = [name for name in top if name.endswith(_SIDE_FILE_SUFFIXES) and not name.endswith(".index.json")]
    side += [n for n in sizes if trust_remote_code and n.endswith(".py")]
    side += [n for n in sizes if _MODULE_FILE.fullmatch(n)]
    side += [n for n in sizes if n.startswith("additional_chat_templates/") and n.endswith(".jinja")]
    return (*sorted(side), *_select_weights(top, allow_pickle=allow_pickle))


def _select_weights(top: list[str], *, allow_pickle: bool) -> list[str]:
    if INDEX_NAME in top:
        return [INDEX_NAME, *sorted(n for n in top if n.startswith("model-") and n.endswith(".safetensors"))]
    if SINGLE_NAME in top:
        return [SINGLE_NAME]
    pickled = sorted(n for n in top if n.endswith((*_PICKLED_SUFFIXES, ".bin.index.json")))
    if pickled and allow_pickle:
        return pickled
    if pickled:
        raise ConfigError(
            "the repository has only pickled weights, which can run code when loaded; "
            "allow_pickle: true permits them for this model",
            param="allow_pickle",
        )
    if any(name.endswith(".gguf") for name in top):
        raise ConfigError(
            "the repository has only GGUF files; download one and name its path", param="source"
        )
    raise ConfigError("the repository has no model.safetensors", param="source")


def _list_files(source: HubSource) -> tuple[str, dict[str, int]] | None:
    """The commit and the size of every file, or None if the Hub cannot be reached.

    Raises:
        FetchFailed: the Hub answers that we may not have it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    except GatedRepoError as error:
        raise FetchFailed(f"{source.repo} is gated: accept its terms on the Hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise FetchFailed(f"{source.repo} has no revision {source.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise FetchFailed(
            f"{source.repo} is not on the Hub, or needs an HF_TOKEN that may read it"
        ) from error
    except Exception:  # the network's errors differ with the HTTP library under huggingface_hub
        return None
    if info.sha is None:
        raise FetchFailed(f"the Hub names no commit for {source.repo}")
    return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _download(repo: str, commit: str, sizes: Mapping[str, int], on_progress: OnProgress) -> Path:
    from huggingface_hub import constants, try_to_load_from_cache

    missing = {
        name: size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(repo, name, revision=commit), str)
    }
    require_space(Path(constants.HF_HUB_CACHE), sum(missing.values()))
    counter = _ByteCounter(max(sum(missing.values()), 1), on_progress)
    paths = {}
    for name in sorted(sizes, key=sizes.__getitem__):  # small files first: a refusal shows early
        try:
            paths[name] = _download_file(repo, name, commit, counter)
        except Exception as error:
            raise FetchFailed(f"{name} of {repo} cannot be fetched: {type(error).__name__}") from error
        counter.finish_file(missing.get(name, 0))
    return next(path.parent for name, path in paths.items() if "/" not in name)


class _ByteCounter:
    """Bytes so far, of finished files and of the one under way. Owner: `_download`."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._total = total
        self._on_progress = on_progress
        self._finished = self._current = 0

    def add(self, num_bytes: float | None) -> None:
        """More of the file under way has arrived."""
        self._current += int(num_bytes or 0)
        self._report()

    def finish_file(self, num_bytes: int) -> None:
        """The file under way is complete; whatever was counted of it gives way to its size."""
        self._finished, self._current = self._finished + num_bytes, 0
        self._report()

    def _report(self) -> None:
        self._on_progress("download", min(1.0, (self._finished + self._current) / self._total))


def _download_file(repo: str, name: str, commit: str, counter: _ByteCounter) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):  # the library reports through a progress bar; this one only counts
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            counter.add(n)
            return None

    takes_bar = "tqdm_class" in inspect.signature(hf_hub_download).parameters
    options: dict[str, Any] = {"tqdm_class": Bar} if takes_bar else {}
    return Path(hf_hub_download(repo, name, revision=commit, **options))


def _cached_snapshot(source: HubSource, why: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source.repo, revision=source.revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FetchFailed(f"{source.repo} is not in the local cache, and {why}") from error
    return folder, folder.name
