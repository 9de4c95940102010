"""The keys that the settings name: one or two of their own, and those of the key file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from inference_server.access.key_file import read_key_file
from inference_server.access.keys import BOTH, INFERENCE, Key, digest_of
from inference_server.config.catalog import Catalog
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError

logger = logging.getLogger(__name__)
MAIN, SECOND = "api_key", "inference_api_key"  # the names of the settings' own keys


def configured_keys(settings: Settings, catalog: Catalog) -> list[Key]:
    """Read them all, the file anew. Lists of models may have aliases; in the keys they have become the names
    of the catalog. What is neither is logged, and grants nothing.

    Raises:
        ConfigError: the key file is wrong, or has a key or a name that the settings have, too.
    """
    keys: list[Key] = []
    if settings.api_key is not None:
        keys.append(Key(MAIN, digest_of(settings.api_key.encode()), BOTH))
    if settings.inference_api_key is not None:
        keys.append(Key(SECOND, digest_of(settings.inference_api_key.encode()), INFERENCE))
    if settings.api_key_file is None:
        return keys
    found = read_key_file(Path(settings.api_key_file))
    if {key.name for key in keys} & {key.name for key in found}:
        raise ConfigError(
            f"the key file names a key {MAIN} or {SECOND}; choose another name", param="api_key_file"
        )
    if {key.digest for key in keys} & {key.digest for key in found}:
        raise ConfigError("the key file has a key that the settings have, too", param="api_key_file")
    return [*keys, *[_by_name(key, catalog) for key in found]]


def _by_name(key: Key, catalog: Catalog) -> Key:
    if key.models is None:
        return key
    unknown = key.models.difference(catalog.names())
    if unknown:
        names = ", ".join(sorted(unknown))
        logger.warning("the key %s lists models that are not configured: %s", key.name, names)
    models = {catalog.resolve(name).name for name in key.models - unknown}
    return replace(key, models=frozenset(models))
