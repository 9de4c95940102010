"""What a JSON schema may say without saying anything of an answer; the grammar library refuses it.

A `format` that it does not know is an annotation, as JSON Schema's own rules have it, and names of
properties are strings anyhow.
"""

from __future__ import annotations

from typing import Any

from inference_server.structured.json_schema import map_schemas

_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
)  # the library's
_ANY_NAME: tuple[Any, ...] = (True, {}, {"type": "string"})


def without_idle_words(schema: Any) -> Any:
    """The schema without them; never changes its argument.

    Raises RecursionError for a schema nested as deeply as Python's stack.
    """
    return map_schemas(schema, _without)


def _without(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if not _is_idle(key, value)}


def _is_idle(key: str, value: Any) -> bool:
    if key == "format":
        return isinstance(value, str) and value not in _FORMATS
    return key == "propertyNames" and value in _ANY_NAME
