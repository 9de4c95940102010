"""Values of the configuration as the commands show them. Pure."""

from __future__ import annotations

from inference_server.config.spec import KvCacheSpec, ModelSpec
from inference_server.config.units import format_bytes, format_duration


def model_value(spec: ModelSpec, key: str) -> str:
    """A key of a model's entry as a person would write its value."""
    if key == "keep_alive":
        return format_duration(spec.keep_alive_s)
    if key == "kv_cache":
        return kv_cache(spec.kv_cache)
    if key.startswith("defaults."):
        return shown(getattr(spec.defaults, key.removeprefix("defaults.")))
    return shown(getattr(spec, key))


def kv_cache(spec: KvCacheSpec) -> str:
    """A KV reservation."""
    if spec.num_bytes is not None:
        return format_bytes(spec.num_bytes)
    return f"{spec.num_tokens} tokens" if spec.num_tokens is not None else "8 x context"


def shown(value: object) -> str:
    """Any value, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 72 else text[:71] + "…"
