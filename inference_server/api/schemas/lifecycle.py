"""Bodies of the lifecycle routes, and what they say of a model."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inference_server.model_manager.status import ModelStatus


class ModelName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a lifecycle call."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]


class LoadRequest(ModelName, frozen=True, forbid_unknown_fields=True):
    """The body of a load; `keep_alive` as in a request for an answer."""

    keep_alive: float | str | None = None


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a reload: `{}`."""


def lifecycle_fields(status: ModelStatus) -> dict[str, Any]:
    """What the lifecycle routes add to a model of `/v1/models`. Durations are seconds.

    `last_used_s` ago nobody used it any more (null: somebody does, or it is not in memory); it is unloaded
    in `expires_in_s` if nobody asks for it (null: it stays). `retry_in_s` is the rest of the pause after a
    failed load.
    """
    progress, spec = status.progress, status.spec
    return {
        "state": status.state,
        "aliases": spec.aliases,
        "pinned": spec.pinned,
        "preload": spec.preload,
        "num_leases": status.num_leases,
        "num_waiting": status.num_waiting,
        "bytes_by_device": dict(status.bytes_by_device),
        "progress": None if progress is None else {"stage": progress[0], "fraction": progress[1]},
        "last_used_s": _rounded(status.idle_s),
        "expires_in_s": _rounded(status.expires_in_s),
        "can_sleep": status.can_sleep,
        "failure": status.failure,
        "retry_in_s": _rounded(status.retry_in_s),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
