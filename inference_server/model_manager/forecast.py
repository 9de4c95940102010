"""What would happen if a model were asked for now: its plan, and who would leave for it. Changes nothing."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.config.units import format_bytes
from inference_server.model_manager.admission import Decision, Evict, Grant, Refuse, Wait, refused
from inference_server.model_manager.model_plan import ModelPlan
from inference_server.model_manager.warm_tier import Victim


class Outcome(enum.StrEnum):
    """What a request for the model would meet."""

    RESIDENT = "resident"  # it is in memory, or on its way
    FITS = "fits"  # its bytes are free
    EVICTS = "evicts"  # others leave for it
    WAITS = "waits"  # others may leave later: they are in use, or were only just loaded
    REFUSED = "refused"  # it cannot be had, whoever leaves
    UNKNOWN = "unknown"  # its files are not here yet


@dataclass(frozen=True, slots=True)
class Forecast:
    """`plan` is None where the files are not here; `message` says what the outcome means."""

    outcome: Outcome
    message: str
    plan: ModelPlan | None = None
    victims: tuple[Victim, ...] = ()


def forecast_of(name: str, plan: ModelPlan, decision: Decision) -> Forecast:
    """What the decision on a model's claim means for whoever asks."""
    match decision:
        case Grant():
            return Forecast(Outcome.FITS, "its bytes are free now", plan)
        case Evict(victims):
            return Forecast(Outcome.EVICTS, "idle models leave for it", plan, victims)
        case Refuse() as refusal:
            return Forecast(Outcome.REFUSED, refused(name, refusal).message, plan)
        case Wait(is_leaving=True):
            return Forecast(Outcome.WAITS, "enough memory is on its way back", plan)
        case Wait():
            return Forecast(Outcome.WAITS, "the models in memory are in use or were only just loaded", plan)


def too_large(name: str, plan: ModelPlan, capacity_bytes: Mapping[str, int]) -> Forecast | None:
    """The refusal of a model that is larger than a whole budget; None if it is not."""
    for device, needed in plan.bytes_by_device.items():
        budget = capacity_bytes.get(device, 0)
        if needed > budget:
            message = (
                f"{name!r} needs {format_bytes(needed)} on {device}, more than the whole memory budget of "
                f"{format_bytes(budget)} there"
            )
            return Forecast(Outcome.REFUSED, message, plan)
    return None


def plan_fields(plan: ModelPlan) -> dict[str, Any]:
    """A plan as JSON: bytes, lengths in tokens, and why its quantization is what it is."""
    load = plan.load
    return {
        "device": plan.device,
        "task": load.task,
        "kernels": load.kernels,
        "quantization": load.quantization,
        "why": plan.why,
        "dtype": load.dtype,
        "max_model_len": plan.max_model_len,
        "kv_cache_tokens": load.kv_cache_tokens,
        "weights_bytes": plan.weights_bytes,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "workspace_bytes": plan.workspace_bytes,
        "context_bytes": plan.context_bytes,
        "is_measured": plan.is_measured,
        "bytes_by_device": dict(plan.bytes_by_device),
        "sleeping_bytes_by_device": dict(plan.sleeping_bytes_by_device),
    }
