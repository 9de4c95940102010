"""What a checkpoint's JSON files say about the model, in one vocabulary for all families.

Reads config.json and generation_config.json; knows nothing of weights, devices or memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from inference_server.errors import FetchFailed

MAX_JSON_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_POSITION_EMBEDDINGS = 2048  # where a config names no limit

_POSITION_KEYS = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length",
)  # fmt: skip
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as its files describe it. `dtype` is torch's name ("bfloat16"), or None if none is given."""

    architecture: str
    model_type: str
    dtype: str | None
    max_position_embeddings: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    num_layers: int


def model_facts(folder: Path) -> ModelFacts:
    """Read the facts of a prepared folder.

    Raises:
        FetchFailed: config.json is missing or damaged, or lacks what every model must say.
    """
    config = read_config(folder)
    text = text_config(config)
    architectures = config.get("architectures") or text.get("architectures")
    return ModelFacts(
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "",
        model_type=str(config.get("model_type", "")),
        dtype=config_dtype(config),
        max_position_embeddings=first_int(text, _POSITION_KEYS) or DEFAULT_MAX_POSITION_EMBEDDINGS,
        vocab_size=required_int(text, ("vocab_size",)),
        eos_token_ids=_eos_token_ids(folder, config, text),
        num_layers=required_int(text, LAYER_KEYS),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dictionary.

    Raises:
        FetchFailed: it is missing, too large or not a JSON object.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise FetchFailed("the checkpoint has no config.json")
    return config


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a checkpoint, or None if there is no such file.

    Raises:
        FetchFailed: the file is too large or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FetchFailed(f"{path.name} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))  # the parser that the loader uses, on purpose
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FetchFailed(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FetchFailed(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise FetchFailed(f"{path.name} is not a JSON object")
    return value


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model: `text_config` of a multimodal config, else the config."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) and nested else config


def config_dtype(config: Mapping[str, Any]) -> str | None:
    """The stored dtype by torch's name, without the `torch.` prefix."""
    for part in (config, text_config(config)):
        value = part.get("dtype") or part.get("torch_dtype")
        if isinstance(value, str):
            return value.removeprefix("torch.")
    return None


def first_int(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first of `keys` that is a positive integer."""
    return next((value for key in keys if is_count(value := config.get(key))), None)


def required_int(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """Like `first_int`, but one of the keys must be there.

    Raises:
        FetchFailed: none is.
    """
    value = first_int(config, keys)
    if value is None:
        raise FetchFailed(f"config.json does not say {keys[0]}")
    return value


def is_count(value: object) -> TypeGuard[int]:
    """True for a positive integer (and not for True)."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _eos_token_ids(folder: Path, *configs: Mapping[str, Any]) -> frozenset[int]:
    generation = read_json(folder / "generation_config.json") or {}
    found: set[int] = set()
    for part in (generation, *configs):
        value = part.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found.update(i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
    return frozenset(found)
