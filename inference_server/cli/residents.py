"""What `/models` tells of each model, as the cells of a table. Pure; trusts no field to be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inference_server.config.units import format_bytes

TITLES = ("MODEL", "STATE", "DEVICE", "MEMORY", "LAST USED", "EXPIRES", "QUEUE")
ABSENT = ("unloaded",)
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def resident_rows(models: Sequence[Mapping[str, Any]], *, show_all: bool = False) -> list[tuple[str, ...]]:
    """A row per model that is in memory, on its way there, or could not be loaded."""
    return [_row(model) for model in models if show_all or model.get("status") not in ABSENT]


def memory_line(memory: Sequence[Mapping[str, Any]]) -> str:
    """E.g. "cpu: 612 MiB of 12 GiB reserved"; empty without a device."""
    parts = [
        f"{device.get('device')}: {_size(device.get('reserved_bytes'), '0 B')} of "
        f"{_size(device.get('budget_bytes'), '0 B')} reserved"
        for device in memory
    ]
    return " · ".join(parts)


def short_duration(seconds: float) -> str:
    """The largest unit alone, which is all that a glance needs: "9m", "3h", "0s"."""
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{round(seconds / length)}{unit}"
    return "0s"


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(model.get("id")),
        _state(model),
        str(model.get("device") or "-"),
        _size(model.get("memory_bytes"), "-"),
        _last_used(model),
        _expires(model),
        str(model.get("num_queued") or 0),
    )


def _state(model: Mapping[str, Any]) -> str:
    """The word that `/v1/models` has for it, and how far a load has come."""
    state, progress = str(model.get("status")), model.get("progress")
    if isinstance(progress, dict) and isinstance(fraction := progress.get("fraction"), int | float):
        return f"{state} {fraction:.0%}"
    return state


def _last_used(model: Mapping[str, Any]) -> str:
    if num_leases := model.get("num_leases"):
        return f"now ({num_leases})"
    idle_s = model.get("last_used_s")
    return f"{short_duration(idle_s)} ago" if isinstance(idle_s, int | float) else "-"


def _expires(model: Mapping[str, Any]) -> str:
    left_s = model.get("expires_in_s")
    if isinstance(left_s, int | float):
        return f"in {short_duration(left_s)}"
    if isinstance(retry_s := model.get("retry_in_s"), int | float):
        return f"retry {short_duration(retry_s)}"
    stays = model.get("status") in ("loaded", "sleeping") and not model.get("num_leases")
    return "never" if stays else "-"


def _size(value: object, otherwise: str) -> str:
    return format_bytes(value) if isinstance(value, int) and value > 0 else otherwise
