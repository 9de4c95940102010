"""Looks at a fetched folder before anything loads it: code in configs, pickled weights, missing pieces.

Loading a checkpoint must never run its code unless the operator said so for this model. Reads JSON only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inference_server.checkpoints.facts import LAYER_KEYS, MAX_JSON_BYTES, first_int, read_config, text_config
from inference_server.checkpoints.headers import read_checkpoint, weight_files
from inference_server.errors import ConfigError, FetchFailed

PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_DEPTH = 64
_SHARED_LAYERS = 1000  # no sensible model has more, even if its layers share tensors
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "model.safetensors.index.json",
)  # large, and hold no settings
_CODE_KEYS = ("auto_map", "custom_generate", "custom_pipelines")
# With these, transformers would take other weights or other settings than the ones that are inspected.
_REDIRECTIONS = ("transformers_weights", "configuration_files", "attribute_map")


def inspect_folder(folder: Path, *, allow_pickle: bool, trust_remote_code: bool) -> None:
    """Refuse what must not or cannot be loaded.

    Raises:
        ConfigError: the checkpoint would run code, has only pickled weights, is an adapter, or leads the
            loader to other files.
        FetchFailed: a file is missing or damaged.
    """
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            "this is an adapter, not a model; merge it into its base model first", param="source"
        )
    config = read_config(folder)
    _refuse_redirections(config)
    if not trust_remote_code:
        _refuse_code(folder)
    if config.get("model_type") != "scripted":
        _check_weights(folder, config, allow_pickle=allow_pickle)


def _refuse_redirections(config: dict[str, Any]) -> None:
    found = next((key for key, value in _walk(config) if key in _REDIRECTIONS and value), None)
    if found is not None:
        raise ConfigError(
            f"config.json leads to files or settings that are not inspected ({found}); "
            "remove this key and name the weights model.safetensors",
            param="source",
        )


def _refuse_code(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        reason = None if path.name in _VOCABULARIES else _code_in(path)
        if reason is not None:
            raise ConfigError(
                f"{path.name} {reason}; trust_remote_code: true permits it for this model",
                param="trust_remote_code",
            )


def _code_in(path: Path) -> str | None:
    """Why loading this file would run code from elsewhere, or None."""
    for key, value in _walk(_parse(path)):
        if key in _CODE_KEYS and value:
            return f"loads Python code from the repository ({key})"
        if "implementation" in key and any("/" in text or ":" in text for text in _strings(value)):
            return f"loads a kernel from elsewhere ({key})"
    return None


def _parse(path: Path) -> object:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise FetchFailed(f"{path.name} is too large to be checked")
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FetchFailed(f"{path.name} is not JSON") from error
    return value


def _walk(value: object, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Every key and value of nested JSON; list items come with the key ""."""
    if depth > _MAX_DEPTH:
        raise FetchFailed("a JSON file of the checkpoint is nested too deeply")
    items = value.items() if isinstance(value, dict) else (("", inner) for inner in _items(value))
    for key, inner in items:
        yield key, inner
        yield from _walk(inner, depth + 1)


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    yield from (inner for _, inner in _walk(value) if isinstance(inner, str))


def _check_weights(folder: Path, config: dict[str, Any], *, allow_pickle: bool) -> None:
    if weight_files(folder):
        _check_layers(config, num_tensors=len(read_checkpoint(folder)))
        return
    if not any(next(folder.glob(pattern), None) for pattern in PICKLED_PATTERNS):
        raise ConfigError("the folder has no model.safetensors", param="source")
    if not allow_pickle:
        raise ConfigError(
            "the weights are pickled, which can run code when loaded; "
            "allow_pickle: true permits them for this model",
            param="allow_pickle",
        )


def _check_layers(config: dict[str, Any], *, num_tensors: int) -> None:
    """A number of layers far beyond what is stored would only cost the memory that describes them."""
    num_layers = first_int(text_config(config), LAYER_KEYS) or 0
    if num_layers > max(num_tensors, _SHARED_LAYERS):
        raise FetchFailed(f"config.json names {num_layers} layers, the checkpoint has {num_tensors} tensors")
