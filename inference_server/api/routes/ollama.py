"""`GET /api/ps` in Ollama's shape: which models are in memory, how large, and until when."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_server.api.context import visible_models
from inference_server.checkpoints.parameters import parameter_size
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import ModelStatus

IN_MEMORY = frozenset({ModelState.READY, ModelState.SLEEPING, ModelState.DRAINING})
NEVER = "9999-12-31T23:59:59Z"  # clients parse a time; one that never expires has none
_FLOATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


async def running_models(request: Request) -> Response:
    """Every model that holds memory."""
    statuses = [status for status in visible_models(request) if status.state in IN_MEMORY]
    models = [
        running_model(
            status, plan, await asyncio.to_thread(parameter_size, Path(plan.load.folder)), time.time()
        )
        for status in statuses
        if (plan := status.plan) is not None
    ]
    return Response(msgspec.json.encode({"models": models}), media_type="application/json")


def running_model(status: ModelStatus, plan: ModelPlan, parameters: str, now_s: float) -> dict[str, Any]:
    """One entry. `now_s` is seconds since the epoch; `digest` stands for the weights and their format."""
    family, load = plan.facts.model_type, plan.load
    details = {
        "parent_model": "",
        "format": "gguf" if status.spec.source.lower().endswith(".gguf") else "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": parameters,
        "quantization_level": _quantization_level(load.quantization, load.dtype),
    }
    return {
        "name": status.name,
        "model": status.name,
        "size": status.memory_bytes,
        "digest": hashlib.sha256(f"{load.folder}\0{load.quantization}\0{load.dtype}".encode()).hexdigest(),
        "details": details,
        "expires_at": _expires_at(status, now_s),
        "size_vram": _gpu_bytes(status.bytes_by_device),
        "context_length": plan.max_model_len,
    }


def _quantization_level(quantization: str, dtype: str) -> str:
    return _FLOATS.get(dtype, dtype.upper()) if quantization == "none" else quantization.upper()


def _gpu_bytes(bytes_by_device: Mapping[str, int]) -> int:
    return sum(num_bytes for device, num_bytes in bytes_by_device.items() if device.startswith("cuda"))


def _expires_at(status: ModelStatus, now_s: float) -> str:
    """While somebody uses the model: when it would expire if that ended now."""
    spec, left_s = status.spec, status.expires_in_s
    if left_s is None and status.num_leases and not (spec.pinned or spec.preload):
        left_s = spec.keep_alive_s
    if left_s is None:
        return NEVER
    moment = datetime.fromtimestamp(now_s, UTC) + timedelta(seconds=left_s)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
