"""Plans models from their files, off the event loop: a large checkpoint has megabytes of headers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.model_manager.arrival import Planner
from inference_server.model_manager.devices import cpu_flags
from inference_server.model_manager.plan import ModelPlan, plan_model


def planner_for(settings: Settings) -> Planner:
    """A planner that reads the prepared folder in a thread."""
    flags = cpu_flags()

    async def plan(spec: ModelSpec, folder: Path, capacity_bytes: Mapping[str, int]) -> ModelPlan:
        return await asyncio.to_thread(plan_model, spec, folder, settings, capacity_bytes, flags)

    return plan
