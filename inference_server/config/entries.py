"""The keys of models.yaml and how its sections become specs. It knows one text at a time, no settings.

memory:    → MemorySpec
defaults:  what a model gets that does not say it itself
models:    → ModelSpec per name
server:    left to settings.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.config import kinds
from inference_server.config.document import Located
from inference_server.config.keys import Key, Problems, entries_of, read_section
from inference_server.config.model_keys import (
    KV_CACHE_KEYS,
    MEMORY_KEYS,
    MODEL_KEYS,
    NAME_EXPECTED,
    NAME_PATTERN,
    SAMPLING_KEYS,
    SHARED_KEYS,
)
from inference_server.config.spec import KvCacheSpec, MemorySpec, ModelSpec, SamplingDefaults

SECTIONS = ("memory", "defaults", "models", "server")
_NAME = kinds.text("NAME", NAME_PATTERN, NAME_EXPECTED)


@dataclass(frozen=True, slots=True)
class Entries:
    """What a models.yaml says. `origins`: model → key → where its value was written."""

    models: tuple[ModelSpec, ...]
    memory: MemorySpec
    memory_origins: Mapping[str, str]
    origins: Mapping[str, Mapping[str, str]]
    server: Located


def read_entries(document: Located) -> Entries:
    """Reads all sections but `server`, which is returned as it is.

    Raises:
        ConfigError: one line per problem.
    """
    problems = Problems()
    sections = _sections(document, problems)
    memory, memory_origins = _read_memory(sections["memory"], problems)
    shared = _read_shared(sections["defaults"], problems)
    models: list[ModelSpec] = []
    origins: dict[str, Mapping[str, str]] = {}
    for name, raw in entries_of(sections["models"], "models", problems).items():
        spec, found = _read_model(name, raw, shared, problems)
        if spec is not None:
            models.append(spec)
            origins[name] = found
    _refuse_shared_names(models, sections["models"], problems)
    problems.raise_if_any()
    return Entries(tuple(models), memory, memory_origins, origins, sections["server"])


def _sections(document: Located, problems: Problems) -> dict[str, Located]:
    found = entries_of(document, "", problems)
    for name, raw in found.items():
        if name not in SECTIONS:
            hint = kinds.did_you_mean(name, SECTIONS) or f"; the sections are {', '.join(SECTIONS)}"
            problems.add(raw.where, f"unknown key `{name}`{hint}")
    return {name: found.get(name, Located(None, document.where)) for name in SECTIONS}


def _read_memory(section: Located, problems: Problems) -> tuple[MemorySpec, Mapping[str, str]]:
    values = read_section(section, MEMORY_KEYS, "memory", problems)
    gpu_fraction, gpu_bytes = values.get("gpu", (MemorySpec().gpu_fraction, None))
    host_fraction, host_bytes = values.get("host", (None, None))
    memory = MemorySpec(
        gpu_fraction=gpu_fraction, gpu_bytes=gpu_bytes, host_fraction=host_fraction, host_bytes=host_bytes
    )
    return memory, _places(section, values)


def _read_shared(section: Located, problems: Problems) -> dict[str, tuple[Any, str]]:
    """Values of the `defaults:` section with where each was written."""
    own = entries_of(section, "defaults", problems)
    for name in sorted(set(own) & (set(MODEL_KEYS) - set(SHARED_KEYS))):
        problems.add(own[name].where, f"`{name}` cannot be a default for all models; write it at each model")
    known = Located(
        {n: raw for n, raw in own.items() if n not in set(MODEL_KEYS) - set(SHARED_KEYS)}, section.where
    )
    values = _read_with_kv_cache(known, SHARED_KEYS, "defaults", problems)
    return {name: (value, f"{own[name].where} (defaults)") for name, value in values.items()}


def _read_model(
    name: str, raw: Located, shared: Mapping[str, tuple[Any, str]], problems: Problems
) -> tuple[ModelSpec | None, Mapping[str, str]]:
    path = f"models.{name}"
    try:
        _NAME.parse(name)
    except ValueError as error:
        problems.add(raw.where, f"models: {error}")
        return None, {}
    own = dict(entries_of(raw, path, problems))
    sampling = own.pop("defaults", Located(None, raw.where))
    chosen = read_section(sampling, SAMPLING_KEYS, f"{path}.defaults", problems)
    values = _read_with_kv_cache(Located(own, raw.where), MODEL_KEYS, path, problems)
    if own.get("source", Located(None, "")).value is None:
        problems.add(raw.where, f"{path}: needs a `source`, such as `source: org/name`")
    if "source" not in values:
        return None, {}
    origins = {key: where for key, (_, where) in shared.items()} | _places(raw, values)
    origins |= {f"defaults.{key}": where for key, where in _places(sampling, chosen).items()}
    merged = {key: value for key, (value, _) in shared.items()} | values
    if "keep_alive" in merged:
        merged["keep_alive_s"] = merged.pop("keep_alive")
    return ModelSpec(name=name, defaults=SamplingDefaults(**chosen), **merged), origins


def _read_with_kv_cache(
    section: Located, keys: Mapping[str, Key], path: str, problems: Problems
) -> dict[str, Any]:
    """`read_section`, with `kv_cache` also as a mapping of its own (`tokens: N` or `bytes: SIZE`)."""
    own = dict(entries_of(section, path, problems))
    detailed = own.get("kv_cache")
    if detailed is None or not isinstance(detailed.value, dict):
        return read_section(section, keys, path, problems)
    del own["kv_cache"]
    values = read_section(Located(own, section.where), keys, path, problems)
    found = read_section(detailed, KV_CACHE_KEYS, f"{path}.kv_cache", problems)
    if len(found) == 2:
        problems.add(detailed.where, f"{path}.kv_cache: give `bytes` or `tokens`, not both")
    elif found:
        values["kv_cache"] = KvCacheSpec(num_bytes=found.get("bytes"), num_tokens=found.get("tokens"))
    return values


def _refuse_shared_names(models: list[ModelSpec], section: Located, problems: Problems) -> None:
    """A name or alias belongs to one model."""
    owners = {spec.name: spec.name for spec in models}
    places = section.value if isinstance(section.value, dict) else {}
    for spec in models:
        for alias in spec.aliases:
            if alias in owners:
                whose = (
                    "its own name"
                    if owners[alias] == spec.name
                    else f"already taken by models.{owners[alias]}"
                )
                problems.add(places[spec.name].where, f"models.{spec.name}.aliases: {alias!r} is {whose}")
            owners.setdefault(alias, spec.name)


def _places(section: Located, values: Mapping[str, Any]) -> dict[str, str]:
    entries = section.value if isinstance(section.value, dict) else {}
    return {name: entries[name].where for name in values if name in entries}
