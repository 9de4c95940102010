"""`/metrics` for Prometheus and `/metrics/epp` for endpoint pickers. A scrape never wakes a model."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.context import ApiContext, context_of
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import ModelStatus
from inference_server.telemetry.endpoint_picker import CONTENT_TYPE
from inference_server.types import EngineStats


async def page(request: Request) -> Response:
    """Everything, for all models."""
    context = context_of(request)
    statuses = context.manager.snapshot()
    context.metrics.sync_models(status.name for status in statuses)
    for usage in context.manager.device_usage():
        context.metrics.set_budget(usage.device, usage.budget_bytes, usage.reserved_bytes)
    context.metrics.draining.set(context.door.is_draining)
    context.metrics.shutdown_left.set(context.door.shutdown_left_s)
    for status in statuses:
        _set_load(context, status)
    context.metrics.set_memory(
        {key: held for status in statuses for key, held in memory_by_kind(status).items()}
    )
    # Tens of milliseconds with many models, during which the loop must go on answering.
    body, media_type = await asyncio.to_thread(context.metrics.render)
    return Response(body, headers={"content-type": media_type})


async def endpoint_picker_page(request: Request) -> Response:
    """A few process-wide series; cheap enough to be asked for many times a second."""
    return Response(context_of(request).picker_page.get(), headers={"content-type": CONTENT_TYPE})


def _set_load(context: ApiContext, status: ModelStatus) -> None:
    stats = status.stats or EngineStats()
    in_house = context.door.num_in_progress(status.name)
    context.metrics.set_load(
        status.name,
        num_running=stats.num_running,
        num_waiting=max(0, in_house - stats.num_running),
        kv_cache_usage=stats.kv_cache_usage,
    )


def memory_by_kind(status: ModelStatus) -> dict[tuple[str, str, str], int]:
    """A reservation by (model, device, kind); the kinds of a device add up to what is reserved there."""
    plan = status.plan
    if plan is None:
        return {}
    is_asleep = status.state is ModelState.SLEEPING
    found: dict[tuple[str, str, str], int] = {}
    for device in {plan.device, *status.bytes_by_device}:
        reserved = status.bytes_by_device.get(device, 0)
        # A model that sleeps keeps its weights, if at all, on another device than it computes on.
        holds_weights = (device == plan.device) != is_asleep
        weights = min(plan.weights_bytes, reserved) if holds_weights else 0
        kv = min(plan.kv_cache_bytes, reserved - weights) if device == plan.device and not is_asleep else 0
        rest = reserved - weights - kv
        for kind, num_bytes in (("weights", weights), ("kv", kv), ("workspace", rest)):
            found[status.name, device, kind] = num_bytes
    return found
