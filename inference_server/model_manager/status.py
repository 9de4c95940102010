"""What others may know of a model: frozen snapshots for /v1/models, readiness and metrics. Cheap to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inference_server.config.catalog import ModelSpec
from inference_server.model_manager.keep_alive import expires_at_s
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.record import ModelRecord
from inference_server.model_manager.states import ModelState
from inference_server.types import EngineStats, MemoryReport


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One configured model at one moment.

    `plan` is that of the last load, so that `plan.load.folder` and `plan.max_model_len` are known also while
    the model is not in memory; it is None before the first. `bytes_by_device` is reserved now. `memory` is
    what the worker measured. `progress` is (stage, fraction) of a load under way. Seconds: `idle_s` since the
    last use, `expires_in_s` until it is unloaded if nobody uses it (None: never, or in use), `retry_in_s`
    until a model whose load failed may be tried again (None: at once).
    """

    name: str
    state: ModelState
    spec: ModelSpec
    device: str | None
    dtype: str | None
    memory_bytes: int
    bytes_by_device: Mapping[str, int]
    memory: MemoryReport | None
    plan: ModelPlan | None
    progress: tuple[str, float | None] | None
    stats: EngineStats | None
    pid: int | None
    num_leases: int
    num_waiting: int
    last_used_s: float | None
    state_since_s: float
    failure: str | None
    can_sleep: bool
    idle_s: float | None
    expires_in_s: float | None
    retry_in_s: float | None


def status_of(record: ModelRecord, reserved: Mapping[str, int], now_s: float) -> ModelStatus:
    """The snapshot of one record; `reserved` is its reservation."""
    residency, progress, failure = record.residency, record.progress, record.failure
    worker = residency.worker if residency is not None else None
    expires_s = expires_at_s(record.spec, residency) if residency is not None else None
    return ModelStatus(
        name=record.spec.name,
        state=record.state,
        spec=record.spec,
        device=worker.ready.device if worker is not None else None,
        dtype=worker.ready.dtype if worker is not None else None,
        memory_bytes=sum(reserved.values()),
        bytes_by_device=dict(reserved),
        memory=worker.ready.memory if worker is not None else None,
        plan=record.plan,
        progress=(progress.stage, progress.fraction) if progress is not None else None,
        stats=worker.stats if worker is not None else None,
        pid=worker.pid if worker is not None else None,
        num_leases=residency.num_leases if residency is not None else 0,
        num_waiting=record.num_waiting,
        last_used_s=residency.last_used_s if residency is not None else None,
        state_since_s=record.state_since_s,
        failure=failure.error.message if failure is not None else None,
        can_sleep=residency.can_sleep if residency is not None else False,
        idle_s=now_s - residency.last_used_s if residency is not None and not residency.num_leases else None,
        expires_in_s=max(0.0, expires_s - now_s) if expires_s is not None else None,
        retry_in_s=(failure.rest_s(now_s) or None) if failure is not None else None,
    )


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """The budget of one device and how much of it is reserved."""

    device: str
    budget_bytes: int
    reserved_bytes: int
