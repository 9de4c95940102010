"""Reads API keys from a YAML file:

keys:
  - name: alice               # for logs; unique
    key: sk-…                 # or sha256: the hex digest of the key, so that the file holds no secret
    scopes: [inference]       # inference (default), admin
    requests_per_minute: 60
    tokens_per_minute: 100000 # prompt and answer
    max_concurrency: 8        # requests at once
    models: [small, large]    # names or aliases; default: all
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from inference_server.access.keys import Key, Scope, digest_of
from inference_server.errors import ConfigError

Limit = Annotated[int, Meta(ge=1)]
_SHORTEST = 16  # a shorter key can be guessed


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    key: Annotated[str, Meta(pattern=r"^[!-~]+$", min_length=_SHORTEST)] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")] | None = None
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = ("inference",)
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrency: Limit | None = None
    models: Annotated[list[str], Meta(min_length=1)] | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: Annotated[list[_Entry], Meta(min_length=1)]


def read_key_file(path: Path) -> list[Key]:
    """The file's keys.

    Raises:
        ConfigError: it cannot be read, or an entry is wrong; the message shows no key.
    """
    try:
        value: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = msgspec.convert(value, _File)
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(
            path, f"cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        ) from None
    except yaml.YAMLError:
        raise _wrong(path, "is not valid YAML") from None
    except msgspec.ValidationError as error:
        raise _wrong(path, f"is wrong: {error}") from None
    keys = [_key(path, entry) for entry in found.keys]
    _refuse_twins(path, keys)
    return keys


def _key(path: Path, entry: _Entry) -> Key:
    if (entry.key is None) == (entry.sha256 is None):
        raise _wrong(path, f"is wrong: {entry.name!r} needs either key or sha256")
    digest = digest_of(entry.key.encode()) if entry.key is not None else bytes.fromhex(entry.sha256 or "")
    return Key(
        name=entry.name,
        digest=digest,
        scopes=frozenset(entry.scopes),
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        max_concurrency=entry.max_concurrency,
        models=None if entry.models is None else frozenset(entry.models),
    )


def _refuse_twins(path: Path, keys: Sequence[Key]) -> None:
    names, digests = [key.name for key in keys], [key.digest for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _wrong(path, f"is wrong: two keys have the name {twice!r}")
    if len(set(digests)) < len(digests):
        raise _wrong(path, "is wrong: two names have the same key")


def _wrong(path: Path, what: str) -> ConfigError:
    return ConfigError(f"the key file {path.name} {what}", param="api_key_file")
