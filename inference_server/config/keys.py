"""How a table of keys turns raw values from anywhere into checked ones, strictly.

A `Key` is one name with the `Kind` of value it takes; the same table drives the reading of YAML, of
environment variables and of flags, the help texts and the JSON Schema. It knows no particular setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from inference_server.config.document import Located
from inference_server.config.kinds import Kind, did_you_mean, shown
from inference_server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section. A `secret`'s value appears in no message."""

    name: str
    kind: Kind
    summary: str
    secret: bool = False


def table(*keys: Key) -> Mapping[str, Key]:
    """The keys of one section by name, in their order, read-only."""
    return MappingProxyType({key.name: key for key in keys})


@dataclass(slots=True)
class Problems:
    """Collects everything that is wrong, so that the reader hears of it at once. Owned by one reading."""

    messages: list[str] = field(default_factory=list)

    def add(self, where: str, message: str) -> None:
        self.messages.append(f"{where}: {message}")

    def raise_if_any(self) -> None:
        """Raises ConfigError with one line per problem, if there is one."""
        if self.messages:
            raise ConfigError("\n".join(dict.fromkeys(self.messages)))


def read_section(section: Located, keys: Mapping[str, Key], path: str, problems: Problems) -> dict[str, Any]:
    """The checked values of a mapping's known keys; everything else becomes a problem.

    A null stands for "not set", so that a key may be left empty.
    """
    values: dict[str, Any] = {}
    for name, raw in entries_of(section, path, problems).items():
        label = f"{path}.{name}" if path else name
        if name not in keys:
            problems.add(raw.where, f"unknown key `{label}`{did_you_mean(name, keys)}")
        elif raw.value is not None:
            read_value(keys[name], raw, label, problems, into=values)
    return values


def read_value(key: Key, raw: Located, label: str, problems: Problems, *, into: dict[str, Any]) -> None:
    """Puts the checked value under the key's name, or notes the problem."""
    try:
        into[key.name] = key.kind.parse(plain(raw))
    except ValueError as error:
        text = "not a valid value (not shown: it is a secret)" if key.secret else str(error)
        problems.add(raw.where, f"{label}: {text}" if label != raw.where else text)


def entries_of(section: Located, path: str, problems: Problems) -> dict[str, Located]:
    """The entries of a mapping; an empty one for null; a problem for anything else."""
    if isinstance(section.value, dict):
        return section.value
    if section.value is not None:
        problems.add(
            section.where, f"{path or 'the file'}: expected `key: value` pairs, got {shown(section.value)}"
        )
    return {}


def plain(raw: Located) -> object:
    """The value without its places."""
    if isinstance(raw.value, tuple):
        return [plain(item) for item in raw.value]
    if isinstance(raw.value, dict):
        return {name: plain(item) for name, item in raw.value.items()}
    return raw.value
