"""Brings models.yaml, environment and flags together: settings, catalog, and where each value came from.

It decides how a setting that is about models (`--dtype`, `--device` …) changes the catalog: with a MODEL
named it changes that model only, else every model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from inference_server.config.catalog import (
    Catalog,
    anchored,
    catalog_of,
    load_document,
    looks_like_source,
    temporary_model,
)
from inference_server.config.document import Located
from inference_server.config.entries import Entries, read_entries
from inference_server.config.settings import ResolvedSettings, Settings, resolve_with_origins
from inference_server.config.spec import MemorySpec, ModelSpec
from inference_server.errors import ConfigError, UnknownModel

DEFAULT_FILE = "models.yaml"
PER_MODEL_SETTINGS = ("max_model_len", "dtype", "quantization", "kernels", "device", "trust_remote_code")
Origins = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the operator decided. The origins say of each value that is not a default who set it.

    The settings named in PER_MODEL_SETTINGS are in the catalog and back at their defaults in `settings`:
    what was meant for one model must not reach another.
    """

    settings: Settings
    catalog: Catalog
    settings_origins: Origins
    memory_origins: Origins
    model_origins: Mapping[str, Origins]


def load_configuration(
    *, env: Mapping[str, str], flags: Mapping[str, object], folder: Path = Path()
) -> Configuration:
    """Reads models.yaml (as flags or environment say, else the one in `folder`, if any) and resolves all.

    Called again with the same arguments it gives what the file says then, which is how one reloads.

    Raises:
        ConfigError: one line per problem.
    """
    path, entries = _read_file(env, flags, folder)
    resolved = resolve_with_origins(_server_values(entries.server), env, flags)
    _check_files(resolved, folder)
    written = catalog_of(entries, path.parent if path is not None else None)
    catalog = apply_settings(written, resolved, folder)
    return Configuration(
        settings=_without_model_settings(resolved.settings, path),
        catalog=catalog,
        settings_origins={k: v for k, v in resolved.origins.items() if k not in PER_MODEL_SETTINGS},
        memory_origins={**entries.memory_origins, **_memory_origins(resolved)},
        model_origins=_model_origins(entries.origins, written, catalog, resolved),
    )


def apply_settings(catalog: Catalog, resolved: ResolvedSettings, folder: Path = Path()) -> Catalog:
    """The catalog under the settings that are about memory and models.

    Raises:
        ConfigError: `settings.model` is neither configured nor a source.
    """
    catalog = Catalog(models=catalog.models, memory=_memory_under(catalog.memory, resolved.settings))
    overrides = _overrides(resolved)
    if resolved.settings.model is not None:
        return _with_chosen_model(catalog, resolved.settings, overrides, folder)
    models = {name: msgspec.structs.replace(spec, **overrides) for name, spec in catalog.models.items()}
    return Catalog(models=models, memory=catalog.memory)


def find_model(catalog: Catalog, text: str, folder: Path = Path()) -> ModelSpec:
    """The configured model of this name, alias or source; or a temporary one if the text is a source.

    Raises:
        ConfigError: neither; suggests the nearest name.
    """
    try:
        return catalog.resolve(text)
    except UnknownModel as error:
        source = anchored(text, folder)
        if looks_like_source(text):
            same = (spec for spec in catalog.models.values() if spec.source == source)
            return next(same, None) or temporary_model(source)
        hint = "; configure it in models.yaml, or give a source such as org/name or ./folder"
        raise ConfigError(f"MODEL: {error.message}{hint}", param="model") from None


# ---------------------------------------------------------------- reading


def _read_file(
    env: Mapping[str, str], flags: Mapping[str, object], folder: Path
) -> tuple[Path | None, Entries]:
    flag, variable = flags.get("config"), env.get("HELIXFLOW_CONFIG")
    default = folder / DEFAULT_FILE
    if not flag and not variable and not default.is_file():
        return None, read_entries(Located({}, DEFAULT_FILE))
    path = folder / str(flag or variable or DEFAULT_FILE)
    try:
        return path, read_entries(load_document(path, env))
    except ConfigError as error:
        if error.param != "config" or not (flag or variable):
            raise
        place = "--config" if flag else "HELIXFLOW_CONFIG"
        raise ConfigError(f"{place}: {error.message}", param="config") from None


def _server_values(section: Located) -> Mapping[str, object]:
    if section.value is None:
        return {}
    if not isinstance(section.value, dict):
        raise ConfigError(f"{section.where}: server: expected `key: value` pairs")
    return section.value


def _check_files(resolved: ResolvedSettings, folder: Path) -> None:
    for name in ("ssl_keyfile", "ssl_certfile", "api_key_file"):
        value = getattr(resolved.settings, name)
        if value is not None and not (folder / value).is_file():
            raise ConfigError(f"{resolved.origins[name]}: no such file: {value}", param=name)


def check_certificate(configuration: Configuration, folder: Path = Path()) -> None:
    """For who is to serve with it; others need not even be allowed to read the key.

    Raises:
        ConfigError: certificate and key cannot be read, or do not belong together.
    """
    settings = configuration.settings
    if settings.ssl_certfile is None:
        return
    import ssl  # tens of milliseconds, which most commands need not spend

    where = configuration.settings_origins["ssl_certfile"]
    certificate, key = folder / str(settings.ssl_certfile), folder / str(settings.ssl_keyfile)
    try:
        # With an empty password, or OpenSSL would ask the terminal for that of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except PermissionError as error:
        raise ConfigError(
            f"{where}: {certificate.name} and {key.name} may not be read: {error.strerror}",
            param="ssl_certfile",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{where}: {certificate.name} and {key.name} are not a certificate chain and its private key, "
            f"in PEM and unencrypted: {error.strerror}",
            param="ssl_certfile",
        ) from None


# ---------------------------------------------------------------- applying


def _without_model_settings(settings: Settings, path: Path | None) -> Settings:
    defaults = Settings()
    spent = {name: getattr(defaults, name) for name in PER_MODEL_SETTINGS}
    return msgspec.structs.replace(settings, config=str(path) if path is not None else None, **spent)


def _overrides(resolved: ResolvedSettings) -> dict[str, Any]:
    return {name: getattr(resolved.settings, name) for name in PER_MODEL_SETTINGS if name in resolved.origins}


def _memory_under(memory: MemorySpec, settings: Settings) -> MemorySpec:
    share, host = settings.gpu_memory_utilization, settings.host_memory
    if share is not None:
        memory = msgspec.structs.replace(memory, gpu_fraction=share, gpu_bytes=None)
    if host is not None:
        memory = msgspec.structs.replace(memory, host_bytes=host, host_fraction=None)
    return memory


def _with_chosen_model(
    catalog: Catalog, settings: Settings, overrides: Mapping[str, Any], folder: Path
) -> Catalog:
    """Only the chosen model is preloaded; the others stay available on demand."""
    chosen = find_model(catalog, str(settings.model), folder)
    lazy = (msgspec.structs.replace(spec, preload=False) for spec in catalog.models.values())
    others = {spec.name: spec for spec in lazy if spec.name != chosen.name}
    chosen = msgspec.structs.replace(chosen, preload=True, **overrides)
    if settings.served_model_name not in (None, chosen.name):
        chosen = _renamed(chosen, str(settings.served_model_name))
        if chosen.name in others:
            raise ConfigError(f"the name {chosen.name!r} belongs to another model", param="served_model_name")
    return Catalog(models=others, memory=catalog.memory).with_model(chosen)


def _renamed(spec: ModelSpec, name: str) -> ModelSpec:
    """The model under a new name; its old names stay valid."""
    aliases = tuple(alias for alias in (spec.name, *spec.aliases) if alias != name)
    return msgspec.structs.replace(spec, name=name, aliases=aliases)


# ---------------------------------------------------------------- origins


def _memory_origins(resolved: ResolvedSettings) -> dict[str, str]:
    keys = {"gpu_memory_utilization": "gpu", "host_memory": "host"}
    return {key: resolved.origins[name] for name, key in keys.items() if name in resolved.origins}


def _model_origins(
    written: Mapping[str, Origins], before: Catalog, after: Catalog, resolved: ResolvedSettings
) -> dict[str, Origins]:
    """For each model that is served: which of its values were written or set, and where."""
    found: dict[str, Origins] = {}
    for spec in after.models.values():
        names = (name for name in (spec.name, *spec.aliases) if name in before.models)
        entry = before.models.get(next(names, ""))
        if entry is not None and entry.source != spec.source:
            entry = None  # a temporary model took the entry's name
        own = written[entry.name] if entry is not None else {"source": resolved.origins["model"]}
        found[spec.name] = {**own, **_changes(entry, spec, resolved)}
    return found


def _changes(entry: ModelSpec | None, spec: ModelSpec, resolved: ResolvedSettings) -> dict[str, str]:
    """Where those values of a model come from that the settings, and not its entry, decided."""
    origins, model = resolved.origins, resolved.settings.model
    found: dict[str, str] = {}
    if model is not None and spec.preload != (entry is not None and entry.preload):
        found["preload"] = origins["model"]
    if model is None or spec.preload:
        found |= {name: origins[name] for name in _overrides(resolved)}
        if resolved.settings.served_model_name is not None:
            found["name"] = origins["served_model_name"]
    return found
