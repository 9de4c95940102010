"""How loaded this replica is, from the manager's snapshots: for the endpoint picker's page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from inference_server.model_manager.states import ModelState
from inference_server.model_manager.status import DeviceUsage, ModelStatus
from inference_server.telemetry.endpoint_picker import ReplicaLoad

RESIDENT = frozenset({ModelState.READY, ModelState.SLEEPING})
COMING = frozenset({ModelState.FETCHING, ModelState.LOADING})
ABSENT = frozenset({ModelState.UNLOADED, ModelState.FAILED})


def replica_load(
    statuses: Sequence[ModelStatus], usage: Iterable[DeviceUsage], num_in_progress: int
) -> ReplicaLoad:
    """`num_in_progress` counts the sequences in the house, on whatever model, running or not."""
    running = sum(status.stats.num_running for status in statuses if status.stats is not None)
    return ReplicaLoad(
        num_running=running,
        num_waiting=max(0, num_in_progress - running),
        kv_cache_usage=_kv_cache_usage(statuses),
        resident=_names(statuses, lambda status: status.state in RESIDENT),
        coming=_names(statuses, lambda status: status.state in COMING),
        num_more=_num_more(statuses, usage),
    )


def _kv_cache_usage(statuses: Iterable[ModelStatus]) -> float:
    """Used over all KV bytes of the models in memory; 0 without any."""
    held = [
        (status.plan.kv_cache_bytes, status.stats.kv_cache_usage)
        for status in statuses
        if status.state is ModelState.READY and status.plan is not None and status.stats is not None
    ]
    total = sum(num_bytes for num_bytes, _ in held)
    return sum(num_bytes * share for num_bytes, share in held) / total if total else 0.0


def _names(statuses: Iterable[ModelStatus], wanted: Callable[[ModelStatus], bool]) -> list[str]:
    return [name for status in statuses if wanted(status) for name in (status.name, *status.spec.aliases)]


def _num_more(statuses: Sequence[ModelStatus], usage: Iterable[DeviceUsage]) -> int:
    """Names of absent models that fit beside those in memory, the small ones first. A model that was never
    planned counts like the largest that was, or as fitting if none was."""
    free = {device.device: device.budget_bytes - device.reserved_bytes for device in usage}
    plans = [status.plan.bytes_by_device for status in statuses if status.plan is not None]
    largest = max(plans, key=lambda plan: sum(plan.values()), default={})
    absent = [status for status in statuses if status.state in ABSENT]
    needs = [(status.plan.bytes_by_device if status.plan else largest, status) for status in absent]
    num_names = 0
    for needed, status in sorted(needs, key=lambda need: sum(need[0].values())):
        if all(free.get(device, 0) >= num_bytes for device, num_bytes in needed.items()):
            for device, num_bytes in needed.items():
                free[device] -= num_bytes
            num_names += 1 + len(status.spec.aliases)
    return num_names
