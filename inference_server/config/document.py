"""A YAML text as a tree of values that remember where they were written, with ${env:NAME} expanded.

It knows YAML and positions, not what any key means. Tags, merge keys, duplicate keys and repeated
anchors are refused, so that what is read is what is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from inference_server.errors import ConfigError

MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_DEPTH = 16
_ENV_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
# A date is text to us; YAML 1.1 would make it an object.
_TEXT_TAGS = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})


@dataclass(frozen=True, slots=True)
class Located:
    """A value and the place it comes from ("models.yaml, line 12", "--port", "HELIXFLOW_PORT").

    `value` is a scalar, a tuple of Located, or a dict from str to Located.
    """

    value: object
    where: str


def read_document(text: str, *, origin: str, env: Mapping[str, str]) -> Located:
    """The tree of a YAML text. An empty text is an empty mapping.

    Raises:
        ConfigError: not YAML, or something in it that is refused; names the line.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
        raise ConfigError(f"{origin}: larger than 1 MiB; this is no models.yaml")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Located({}, origin)
        return _Reader(loader, origin, env).read(node, depth=0)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error, origin)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: not a YAML text: {_first_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Reader:
    """Turns one document's nodes into Located values; used once."""

    def __init__(self, loader: yaml.SafeLoader, origin: str, env: Mapping[str, str]) -> None:
        self._loader = loader
        self._origin = origin
        self._env = env
        self._seen: set[int] = set()

    def read(self, node: yaml.Node, *, depth: int) -> Located:
        where = self._where(node)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested too deeply")
        if isinstance(node, yaml.ScalarNode):
            return Located(self._scalar(node, where), where)
        if id(node) in self._seen:
            raise ConfigError(f"{where}: a YAML alias for a whole section is not supported; write it out")
        self._seen.add(id(node))
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise ConfigError(f"{where}: YAML tag {node.tag!r} is not supported")
        if isinstance(node, yaml.MappingNode):
            return Located(self._mapping(node, depth), where)
        items = node.value if isinstance(node, yaml.SequenceNode) else []
        return Located(tuple(self.read(item, depth=depth + 1) for item in items), where)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Located]:
        entries: dict[str, Located] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in entries:
                raise ConfigError(
                    f"{self._where(key_node)}: key {key!r} is there twice ({entries[key].where})"
                )
            value = self.read(value_node, depth=depth + 1)
            # The line of the key is the line that the reader looks for.
            entries[key] = Located(value.value, self._where(key_node))
        return entries

    def _key(self, node: yaml.Node) -> str:
        if node.tag == "tag:yaml.org,2002:merge":
            raise ConfigError(
                f"{self._where(node)}: YAML merge keys (<<) are not supported; use the `defaults:` section"
            )
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{self._where(node)}: a key must be text")
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode, where: str) -> object:
        if node.tag in _TEXT_TAGS:
            return str(node.value)
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"{where}: YAML tag {node.tag!r} is not supported")
        value: object = self._loader.construct_object(node)
        return self._expand(value, where) if isinstance(value, str) else value

    def _expand(self, text: str, where: str) -> str:
        return _ENV_REFERENCE.sub(lambda match: self._variable(match.group(1), where), text)

    def _variable(self, name: str, where: str) -> str:
        if not _ENV_NAME.fullmatch(name):
            raise ConfigError(f"{where}: ${{env:{name}}} is not the name of an environment variable")
        if name not in self._env:
            raise ConfigError(f"{where}: the environment variable {name} is not set (from ${{env:{name}}})")
        return self._env[name]

    def _where(self, node: yaml.Node) -> str:
        return f"{self._origin}, line {node.start_mark.line + 1}"


def _syntax_message(error: yaml.MarkedYAMLError, origin: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
    return f"{place}: not valid YAML: {error.problem or error.context or 'syntax error'}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
