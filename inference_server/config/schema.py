"""The JSON Schema of models.yaml, from the tables that also read it.

`python -m inference_server.config.schema > inference_server/config/models.schema.json` publishes it.
It checks shape and ranges; what only the reader can know (names taken twice, units) stays with the reader.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping

from inference_server.config.keys import Key
from inference_server.config.model_keys import (
    KV_CACHE_KEYS,
    MEMORY_KEYS,
    MODEL_KEYS,
    NAME_PATTERN,
    SAMPLING_KEYS,
    SHARED_KEYS,
)
from inference_server.config.setting_keys import SETTINGS

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
# A text may hold an environment reference wherever a value is expected.
_REFERENCE: Mapping[str, object] = {"type": "string", "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}"}


def models_schema() -> dict[str, object]:
    """The schema as plain JSON values."""
    server = (row.key for row in SETTINGS.values() if row.instead is None)
    return {
        "$schema": SCHEMA_ID,
        "title": "HelixFlow models.yaml",
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {
            "memory": _section(MEMORY_KEYS.values(), "the one memory budget that all models share"),
            "defaults": _section(SHARED_KEYS.values(), "what a model gets that does not say it itself"),
            "models": {
                "description": "the models that clients may ask for, by name",
                "type": ["object", "null"],
                "propertyNames": {"pattern": f"^(?:{NAME_PATTERN})$"},
                "additionalProperties": _model(),
            },
            "server": _section(server, "settings of `helixflow serve`; HELIXFLOW_* and flags win over them"),
        },
        "$defs": {"reference": dict(_REFERENCE)},
    }


def _model() -> dict[str, object]:
    section = _section(MODEL_KEYS.values(), "one model", optional=False)
    properties = section["properties"]
    sampling = _section(SAMPLING_KEYS.values(), "what a request gets that does not set the parameter")
    return section | {"required": ["source"], "properties": {**_as_mapping(properties), "defaults": sampling}}


def _section(keys: Iterable[Key], description: str, *, optional: bool = True) -> dict[str, object]:
    return {
        "description": description,
        "type": ["object", "null"] if optional else "object",
        "additionalProperties": False,
        "properties": {key.name: _property(key) for key in keys},
    }


def _property(key: Key) -> dict[str, object]:
    accepted: list[object] = [dict(key.kind.schema), {"$ref": "#/$defs/reference"}]
    if key.name == "kv_cache":
        detailed = _section(KV_CACHE_KEYS.values(), "bytes or tokens", optional=False)
        accepted.append(detailed | {"maxProperties": 1})
    if key.name != "source":
        accepted.append({"type": "null"})
    return {"description": key.summary, "anyOf": accepted}


def _as_mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def rendered() -> str:
    """The text of `models.schema.json`."""
    return json.dumps(models_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(rendered())
