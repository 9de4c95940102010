"""What a sentence-transformers folder says of its embeddings: modules, pooling, length, prompts. Torch-free.

The format: modules.json lists what follows the transformer; each module has a folder with a config.json of
its own (https://sbert.net/docs/package_reference/sentence_transformer/models.html). A folder without these
files gets mean pooling, or the last token's state if its model decodes, and unit length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_server.checkpoints.facts import MAX_JSON_BYTES, is_count, read_config, read_json
from inference_server.errors import ConfigError, FetchFailed

MODULES_FILE = "modules.json"
_POOLING_FILE = "1_Pooling/config.json"
_TRANSFORMER_FILE = "sentence_bert_config.json"
_PROMPTS_FILE = "config_sentence_transformers.json"
_MARKS = (MODULES_FILE, _POOLING_FILE, _TRANSFORMER_FILE)
# In the order in which sentence-transformers concatenates them.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
ACTIVATIONS = ("GELU", "Identity", "ReLU", "SiLU", "Sigmoid", "Tanh")
# Position 0 belongs to the first token behind the padding id: so many positions are never used.
_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"}
)


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A linear layer with an activation behind the pooling. `folder` holds its model.safetensors."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str  # of ACTIVATIONS


@dataclass(frozen=True, slots=True)
class SentenceConfig:
    """How a folder's token states become one vector, and what its texts go through before.

    `max_seq_length` is in tokens, None where the folder does not say it. `prompt` stands before each text.
    `is_matryoshka`: whether the beginning of a vector is an embedding by itself (Matryoshka).
    """

    poolings: tuple[str, ...]
    dense: tuple[DenseModule, ...]
    normalize: bool
    max_seq_length: int | None
    lower_case: bool
    prompt: str
    is_matryoshka: bool


def is_sentence_folder(folder: Path) -> bool:
    """Whether the folder is one of sentence-transformers, and so a model that embeds."""
    return any((folder / name).is_file() for name in _MARKS)


def read_sentence_config(folder: Path) -> SentenceConfig:
    """Read the folder's own description.

    Raises:
        ConfigError: it asks for a module or an option that is not supported; the message names it.
        FetchFailed: a file is damaged.
    """
    config = read_config(folder)
    transformer = read_json(folder / _TRANSFORMER_FILE) or {}
    prompts = read_json(folder / _PROMPTS_FILE) or {}
    prompt = _default_prompt(prompts)
    max_seq_length = transformer.get("max_seq_length")
    modules = _modules(folder)
    return SentenceConfig(
        poolings=_poolings(folder, modules, config, has_prompt=bool(prompt)),
        dense=tuple(_dense(folder / path) for kind, path in modules if kind == "Dense"),
        normalize=not modules or any(kind == "Normalize" for kind, _ in modules),
        max_seq_length=max_seq_length if is_count(max_seq_length) else None,
        lower_case=transformer.get("do_lower_case") is True,
        prompt=prompt,
        is_matryoshka=config.get("is_matryoshka") is True or bool(config.get("matryoshka_dimensions")),
    )


def usable_positions(config: Mapping[str, Any], max_position_embeddings: int) -> int:
    """The longest input in tokens: some families leave their first positions to padding."""
    if config.get("model_type") not in _OFFSET_POSITIONS:
        return max_position_embeddings
    padding = config.get("pad_token_id")
    return max_position_embeddings - (padding if isinstance(padding, int) else 1) - 1


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module, the transformer left out; [] if there is no list."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return [("Pooling", "1_Pooling"), ("Normalize", "")] if (folder / _POOLING_FILE).is_file() else []
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FetchFailed(f"{MODULES_FILE} is too large")
        listed = [(str(entry["type"]), str(entry["path"])) for entry in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise FetchFailed(f"{MODULES_FILE} is damaged") from error
    kinds = [(name.rpartition(".")[2], path) for name, path in listed]
    _refuse_unknown(listed, kinds)
    return kinds[1:]


def _refuse_unknown(listed: list[tuple[str, str]], kinds: list[tuple[str, str]]) -> None:
    names = [kind for kind, _ in kinds]
    for (name, path), (kind, _) in zip(listed, kinds, strict=True):
        known = name.startswith("sentence_transformers.") and kind in (
            "Transformer", "Pooling", "Dense", "Normalize", "Dropout",
        )  # fmt: skip
        if not known or Path(path).name != path or path == "..":
            raise ConfigError(
                f"{MODULES_FILE} names the module {name!r}, which is not supported", param="source"
            )
    if names[:1] != ["Transformer"] or names.count("Transformer") != 1 or names.count("Pooling") != 1:
        raise ConfigError(f"{MODULES_FILE} must name one transformer, first, and one pooling", param="source")
    if names[1] != "Pooling" or "Normalize" in names[:-1]:
        raise ConfigError(
            f"{MODULES_FILE} must have the pooling behind the transformer, and a normalisation last",
            param="source",
        )


def _poolings(
    folder: Path, modules: list[tuple[str, str]], config: Mapping[str, Any], *, has_prompt: bool
) -> tuple[str, ...]:
    path = next((path for kind, path in modules if kind == "Pooling"), None)
    if path is None:
        return ("lasttoken" if _decodes(config) else "mean",)
    pooling = read_json(folder / path / "config.json")
    if pooling is None:
        raise FetchFailed(f"{path}/config.json is missing")
    if has_prompt and pooling.get("include_prompt") is False:
        raise ConfigError(
            f"{path}/config.json leaves the prompt out of the pooling, which is not supported",
            param="source",
        )
    named = pooling.get("pooling_mode")
    chosen = (
        tuple(named if isinstance(named, list) else [named])
        if named
        else tuple(name for name, key in POOLINGS.items() if pooling.get(key) is True)
    )
    if not chosen or any(name not in POOLINGS for name in chosen):
        raise ConfigError(f"{path}/config.json asks for no pooling that is supported", param="source")
    return chosen


def _decodes(config: Mapping[str, Any]) -> bool:
    """Whether each token sees only those before it."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return any("CausalLM" in str(name) for name in names)


def _dense(folder: Path) -> DenseModule:
    config = read_json(folder / "config.json") or {}
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    sizes = (config.get("in_features"), config.get("out_features"))
    kind = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.modules.") or kind not in ACTIVATIONS:
        raise ConfigError(f"{folder.name}: the activation {activation!r} is not supported", param="source")
    if not is_count(sizes[0]) or not is_count(sizes[1]):
        raise FetchFailed(f"{folder.name}/config.json does not say in_features and out_features")
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(f"{folder.name} has no model.safetensors, only pickled weights", param="source")
    return DenseModule(folder, sizes[0], sizes[1], config.get("bias", True) is True, kind)


def _default_prompt(config: Mapping[str, Any]) -> str:
    """The text that goes before every input, if the folder names one as its default."""
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise ConfigError(f"{_PROMPTS_FILE} has no prompt {name!r}", param="source")
    return prompt
