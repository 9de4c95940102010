"""The catalog: every model the server may serve, by name and alias, and the memory they share.

It knows models.yaml's models, not the server's settings (`configuration.py` brings the two together).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from inference_server.config.document import Located, read_document
from inference_server.config.entries import Entries, read_entries
from inference_server.config.kinds import nearest, shown
from inference_server.config.spec import KvCacheSpec, MemorySpec, ModelSpec, SamplingDefaults
from inference_server.errors import ConfigError, UnknownModel

__all__ = [
    "Catalog",
    "KvCacheSpec",
    "MemorySpec",
    "ModelSpec",
    "SamplingDefaults",
    "anchored",
    "catalog_of",
    "load_catalog",
    "load_document",
    "looks_like_source",
    "parse_catalog",
    "temporary_model",
]


class Catalog(msgspec.Struct, frozen=True):
    """All configured models by name, and the memory budget they share."""

    models: dict[str, ModelSpec]
    memory: MemorySpec = MemorySpec()

    def resolve(self, name: str) -> ModelSpec:
        """The model with this name or alias.

        Raises:
            UnknownModel: neither exists; suggests the nearest name.
        """
        if (spec := self.models.get(name)) is not None:
            return spec
        for spec in self.models.values():
            if name in spec.aliases:
                return spec
        hint = nearest(name[:128], self.names())
        suffix = f"; did you mean {hint!r}?" if hint else ""
        raise UnknownModel(f"The model {shown(name)} does not exist{suffix}", param="model")

    def names(self) -> tuple[str, ...]:
        """Every name and alias."""
        return tuple(name for spec in self.models.values() for name in (spec.name, *spec.aliases))

    def with_model(self, spec: ModelSpec) -> Catalog:
        """A copy that has `spec` under its name, in the place of one that had the name before.

        Raises:
            ConfigError: another model has one of its names.
        """
        others = {name: other for name, other in self.models.items() if name != spec.name}
        taken = set(Catalog(others, self.memory).names()) & {spec.name, *spec.aliases}
        if taken:
            raise ConfigError(f"the name {min(taken)!r} belongs to another model")
        return Catalog(models=self.models | {spec.name: spec}, memory=self.memory)


def load_catalog(path: Path, env: Mapping[str, str] | None = None) -> Catalog:
    """The catalog of a models.yaml; relative source paths count from its folder.

    Raises:
        ConfigError: unreadable, or wrong; one line per problem.
    """
    return catalog_of(read_entries(load_document(path, env)), path.parent)


def parse_catalog(text: str, *, origin: str, env: Mapping[str, str] | None = None) -> Catalog:
    """The catalog of a models.yaml's text. `origin` names it in messages.

    Raises:
        ConfigError: one line per problem.
    """
    document = read_document(text, origin=origin, env=os.environ if env is None else env)
    return catalog_of(read_entries(document), None)


def load_document(path: Path, env: Mapping[str, str] | None = None) -> Located:
    """The checked YAML tree of a file.

    Raises:
        ConfigError: unreadable, or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}", param="config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: not a UTF-8 text", param="config") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", param="config") from None
    return read_document(text, origin=path.name, env=os.environ if env is None else env)


def catalog_of(entries: Entries, folder: Path | None) -> Catalog:
    """The catalog of what was read; with a folder, relative source paths are made absolute from it."""
    models = entries.models
    if folder is not None:
        models = tuple(msgspec.structs.replace(s, source=anchored(s.source, folder)) for s in models)
    return Catalog(models={spec.name: spec for spec in models}, memory=entries.memory)


def anchored(source: str, folder: Path) -> str:
    """The source with a relative file path made absolute; other sources unchanged."""
    if source.startswith("~/"):
        return os.path.expanduser(source)
    if source.startswith(("./", "../")) or source in (".", ".."):
        return os.path.abspath(folder / source)
    is_file = source.lower().endswith(".gguf") and not re.match(r"[a-z]+:", source)
    return os.path.abspath(folder / source) if is_file else source


def looks_like_source(text: str) -> bool:
    """Whether `helixflow serve TEXT` can mean a checkpoint and not only a configured name."""
    is_path = "/" in text or text in (".", "..") or text.lower().endswith(".gguf")
    return is_path or re.match(r"(pypi:|scripted(:|$))", text) is not None


def temporary_model(source: str, **overrides: Any) -> ModelSpec:
    """The entry that `helixflow serve SOURCE` stands for: preloaded, named after the source's last part.

    The source itself is an alias, so that clients may also ask for `org/name`. `overrides` are fields of
    ModelSpec.
    """
    name = overrides.pop("name", None) or _name_of(source)
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source, re.ASCII) is not None
    aliases = (source,) if is_hub_id and source != name else ()
    fields: dict[str, Any] = {"preload": True, "aliases": aliases, **overrides}
    return ModelSpec(name=name, source=source, **fields)


def _name_of(source: str) -> str:
    if re.match(r"scripted(:|$)", source):
        return "scripted"
    last = source.rstrip("/").rpartition("/")[2]
    if last in ("", ".", "..", "~"):
        last = Path(source).expanduser().resolve().name
    name = re.sub(r"[^a-z0-9._:@+-]", "-", last.lower().removesuffix(".gguf"))
    return name.lstrip("._:@+-")[:128] or "model"
