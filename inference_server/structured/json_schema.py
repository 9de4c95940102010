"""Where a JSON schema holds further schemas; all else in it (constants, unknown keywords) is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Schemas under names, in a list, alone.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_ALONE = frozenset(
    {"items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties", "propertyNames"}
    | {"unevaluatedProperties", "not", "if", "then", "else"}
)


def map_schemas(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The schema with each one in it changed, the inner ones first; never changes its argument.

    Raises RecursionError for a schema nested as deeply as Python's stack.
    """
    if not isinstance(schema, Mapping):
        return schema  # true, false, or nothing that is a schema
    return change({key: _inner(key, value, change) for key, value in schema.items()})


def _inner(keyword: str, value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if keyword in _NAMED and isinstance(value, Mapping):
        return {name: map_schemas(inner, change) for name, inner in value.items()}
    if keyword in _LISTED and isinstance(value, list):
        return [map_schemas(inner, change) for inner in value]
    return map_schemas(value, change) if keyword in _ALONE else value
