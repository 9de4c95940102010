"""JSON schemas of varied shape from a seed, bounded, so that a small model can end its answer.

Nested objects, arrays with bounds, enums, unions, formats, patterns, numbers in ranges, definitions that
refer to themselves, unicode names.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
_NAMES = (
    "id", "name", "größe", "日付", "value", "tags", "is_active", "Ünïcode key", "a.b", "x-y", "first name",
    "кол",
)  # fmt: skip
_PATTERNS = ("^[A-Z]{2}[0-9]{3}$", "^(red|green|blue)$", "^[a-f0-9]{8}$", "^\\d{4}-\\d{2}$")
_FORMATS = ("date", "time", "uuid", "ipv4")


def schema(seed: int) -> Schema:
    """The schema with this number; always an object at the top."""
    rng = random.Random(seed)
    made = _object(rng, 2)
    if rng.random() < 0.15:
        tree = {
            "type": "object",
            "properties": {"v": _leaf(rng), "next": {"$ref": "#/$defs/tree"}},
            "required": ["v"],
            "additionalProperties": False,
        }
        made["properties"]["tree"] = {"$ref": "#/$defs/tree"}
        made["required"].append("tree")
        made["$defs"] = {"tree": tree}
    return made


def _any(rng: random.Random, depth: int) -> Schema:
    makers = [_leaf, _leaf, _enum, _const]
    if depth:
        makers += [_union]
        nested = rng.random()
        if nested < 0.25:
            return _object(rng, depth - 1)
        if nested < 0.5:
            return _array(rng, depth - 1)
    return rng.choice(makers)(rng)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    properties = {name: _any(rng, depth) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> Schema:
    smallest = rng.randint(0, 2)
    items = _any(rng, depth)
    return {"type": "array", "items": items, "minItems": smallest, "maxItems": smallest + rng.randint(0, 2)}


def _leaf(rng: random.Random) -> Schema:
    low = rng.randint(-50, 50)
    return rng.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 900)},
            {"type": "integer", "exclusiveMinimum": low, "maximum": low + 10},
            {"type": "number", "minimum": low, "maximum": low + 100},
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": rng.randint(1, 15)},
            {"type": "string", "minLength": 2, "maxLength": 8},
            {"type": "string", "pattern": rng.choice(_PATTERNS)},
            {"type": "string", "format": rng.choice(_FORMATS)},
        ]
    )


def _enum(rng: random.Random) -> Schema:
    values: list[Any] = ["one", "zwei", "三", 4, 5.5, None, True, 'with "quotes"', "new\nline"]
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _const(rng: random.Random) -> Schema:
    return {"const": rng.choice(["fixed", 7, False, {"a": 1}])}


def _union(rng: random.Random) -> Schema:
    return {"anyOf": [_leaf(rng), _enum(rng)]}
