"""Bodies of the lifecycle routes, and what they say of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inference_server.model_manager.forecast import Forecast, plan_fields
from inference_server.model_manager.status import DeviceUsage, ModelStatus
from inference_server.profiling.capture import MAX_SECONDS, ProfileKind


class ModelName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a lifecycle call."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]


class LoadRequest(ModelName, frozen=True, forbid_unknown_fields=True):
    """The body of a load; `keep_alive` as in a request for an answer."""

    keep_alive: float | str | None = None


class ProfileRequest(ModelName, frozen=True, forbid_unknown_fields=True):
    """The body of a profile."""

    seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] = 5.0
    kind: ProfileKind = "torch"


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a reload: `{}`."""


def lifecycle_fields(status: ModelStatus, num_in_progress: int) -> dict[str, Any]:
    """What the lifecycle routes add to a model of `/v1/models`. Durations are seconds.

    Of the sequences in progress, `num_running` are computed and `num_queued` wait, be it for the model.
    `last_used_s` ago nobody used it any more (null: somebody does, or it is not in memory); it is unloaded
    in `expires_in_s` if nobody asks for it (null: it stays). `retry_in_s` is the rest of the pause after a
    failed load.
    """
    progress, spec = status.progress, status.spec
    running = status.stats.num_running if status.stats is not None else 0
    return {
        "state": status.state,
        "aliases": spec.aliases,
        "pinned": spec.pinned,
        "preload": spec.preload,
        "num_leases": status.num_leases,
        "num_waiting": status.num_waiting,
        "num_running": running,
        "num_queued": max(0, num_in_progress - running),
        "bytes_by_device": dict(status.bytes_by_device),
        "progress": None if progress is None else {"stage": progress[0], "fraction": progress[1]},
        "last_used_s": _rounded(status.idle_s),
        "expires_in_s": _rounded(status.expires_in_s),
        "can_sleep": status.can_sleep,
        "failure": status.failure,
        "retry_in_s": _rounded(status.retry_in_s),
    }


def forecast_object(name: str, forecast: Forecast, memory: Sequence[DeviceUsage]) -> dict[str, Any]:
    """The answer to a question for a plan. `sleeps`: a victim keeps its process and wakes from memory."""
    return {
        "model": name,
        "outcome": forecast.outcome,
        "message": forecast.message,
        "plan": None if forecast.plan is None else plan_fields(forecast.plan),
        "victims": [{"model": victim.name, "sleeps": victim.sleeps} for victim in forecast.victims],
        "memory": memory_objects(memory),
    }


def memory_objects(memory: Sequence[DeviceUsage]) -> list[dict[str, Any]]:
    """The budget of each device."""
    return [
        {"device": use.device, "budget_bytes": use.budget_bytes, "reserved_bytes": use.reserved_bytes}
        for use in memory
    ]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
