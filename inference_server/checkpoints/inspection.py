"""Looks at a fetched folder before anything loads it: code in configs, pickled weights, missing pieces.

Loading a checkpoint must never run its code unless the operator said so for this model. Reads JSON only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from inference_server.checkpoints.facts import MAX_JSON_BYTES, read_config, read_json
from inference_server.checkpoints.headers import read_checkpoint, weight_files
from inference_server.errors import ConfigError

_PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_DEPTH = 64


def inspect_folder(folder: Path, *, allow_pickle: bool, trust_remote_code: bool) -> None:
    """Refuse what must not or cannot be loaded.

    Raises:
        ConfigError: the checkpoint would run code, has only pickled weights, or is an adapter.
        FetchFailed: a file is missing or damaged.
    """
    if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
        raise ConfigError(
            "this is an adapter, not a model; merge it into its base model first", param="source"
        )
    config = read_config(folder)
    if not trust_remote_code:
        _refuse_code(folder)
    if config.get("model_type") != "scripted":
        _check_weights(folder, allow_pickle=allow_pickle)


def _refuse_code(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith((".index.json", "tokenizer.json", "vocab.json")):
            continue
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path.name} is too large to be checked", param="source")
        reason = _code_in(path)
        if reason is not None:
            raise ConfigError(
                f"{path.name} {reason}; trust_remote_code: true permits it for this model",
                param="trust_remote_code",
            )


def _code_in(path: Path) -> str | None:
    """Why loading this file would run code from elsewhere, or None."""
    if path.name not in ("config.json", "tokenizer_config.json") and _is_no_object(path):
        return None
    for key, value in _walk(read_json(path), 0):
        if key == "auto_map" and value:
            return "loads Python code from the repository (auto_map)"
        if key.endswith("implementation") or "implementation_" in key:
            if any("/" in text or ":" in text for text in _strings(value)):
                return f"loads a remote kernel ({key})"
        if key in ("custom_generate", "custom_pipelines") and value:
            return f"loads Python code from the repository ({key})"
    return None


def _is_no_object(path: Path) -> bool:
    """Lists and the like (merges, word lists) carry no settings."""
    with path.open("rb") as file:
        return not file.read(256).lstrip().startswith(b"{")


def _walk(value: object, depth: int) -> Iterator[tuple[str, object]]:
    """Every key and value of nested JSON."""
    if depth > _MAX_DEPTH:
        raise ConfigError("a config is nested too deeply", param="source")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, depth + 1)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        yield from (inner for _, inner in _walk(value, 0) if isinstance(inner, str))


def _check_weights(folder: Path, *, allow_pickle: bool) -> None:
    if weight_files(folder):
        read_checkpoint(folder)
        return
    if not any(next(folder.glob(pattern), None) for pattern in _PICKLED_PATTERNS):
        raise ConfigError("the folder has no model.safetensors", param="source")
    if not allow_pickle:
        raise ConfigError(
            "the weights are pickled, which can run code when loaded; "
            "allow_pickle: true permits them for this model",
            param="allow_pickle",
        )
