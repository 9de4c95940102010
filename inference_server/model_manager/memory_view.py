"""What memory there is and who holds it, as the line of those who wait for some must see it.

Reads the table, the budget and the machine; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inference_server.model_manager.devices import HOST, DeviceProbe
from inference_server.model_manager.eviction import Hold, Resident
from inference_server.model_manager.load_times import LoadTimes
from inference_server.model_manager.record import ModelRecord, Residency
from inference_server.model_manager.states import ModelState
from inference_server.model_manager.swapping import protected_until_s
from inference_server.model_manager.table import ModelTable


class MemoryView:
    """A view of `table`. `process_bytes` says how much of the host a process (by pid) has touched."""

    def __init__(
        self,
        table: ModelTable,
        *,
        devices: DeviceProbe,
        process_bytes: Callable[[int], int],
        load_times: LoadTimes,
        min_residency_s: float,
    ) -> None:
        self._table = table
        self._budget = table.budget
        self._devices = devices
        self._process_bytes = process_bytes
        self._load_times = load_times
        self._min_residency_s = min_residency_s

    def obtainable_bytes(self) -> dict[str, int]:
        """What each device could give if everything but the pinned models left it.

        What other processes hold is not to be had, whatever the budget says.
        """
        movable = [resident for resident in self.residents() if not resident.pinned]
        return {
            device: available + sum(resident.bytes_by_device.get(device, 0) for resident in movable)
            for device, available in self.available_bytes().items()
        }

    def available_bytes(self) -> dict[str, int]:
        """Per device, the smaller of what the budget has left and what is really free and not promised."""
        free = {name: memory.free_bytes for name, memory in self._devices().items()}
        for record in self._table.records.values():
            for device, num_bytes in self._promised_bytes(record).items():
                if device in free:
                    free[device] -= num_bytes
        return {
            device: max(0, min(self._budget.unreserved_bytes(device), free.get(device, 0)))
            for device in self._budget.capacity_bytes
        }

    def _promised_bytes(self, record: ModelRecord) -> dict[str, int]:
        """Bytes that a model has reserved and not touched yet: all of a load under way; of a worker, what
        the host has only promised it (a KV cache there takes pages as it fills), and what it wakes into."""
        reserved, residency = self._budget.reservation(record.spec.name), record.residency
        if residency is None:
            return dict(reserved)
        used = self._process_bytes(residency.worker.pid)
        promised = {HOST: max(0, reserved.get(HOST, 0) - used)}
        if record.state is ModelState.LOADING:
            held = residency.plan.sleeping_bytes_by_device
            promised |= {d: max(0, n - held.get(d, 0)) for d, n in reserved.items() if d != HOST}
        return promised

    def residents(self) -> list[Resident]:
        """Everybody who holds a reservation."""
        records = self._table.records.values()
        return [self._resident(record) for record in records if self._budget.reservation(record.spec.name)]

    def _resident(self, record: ModelRecord) -> Resident:
        reserved, residency = self._budget.reservation(record.spec.name), record.residency
        num_bytes = sum(reserved.values())
        if residency is None:
            return Resident(
                name=record.spec.name,
                bytes_by_device=reserved,
                last_used_s=self._table.clock(),
                oldest_wait_s=record.oldest_wait_s,
                pinned=record.spec.pinned,
                hold=Hold.LOADING,
            )
        hold = _hold(record, residency, reserved)
        leaves_to_sleep = hold in (Hold.DRAINING, Hold.LEAVING) and residency.may_sleep
        kept = residency.plan.sleeping_bytes_by_device if leaves_to_sleep else {}
        return Resident(
            name=record.spec.name,
            bytes_by_device={device: n - kept.get(device, 0) for device, n in reserved.items()},
            last_used_s=residency.last_used_s,
            num_leases=residency.num_leases,
            oldest_wait_s=record.oldest_wait_s,
            pinned=record.spec.pinned,
            hold=hold,
            protected_until_s=protected_until_s(
                ready_s=residency.ready_since_s,
                last_used_s=residency.last_used_s,
                is_used=residency.num_leases > 0,
                min_residency_s=self._min_residency_s,
            ),
            reload_s=self._load_times.estimate_s(record.spec, num_bytes),
            sleeping_bytes=residency.sleeping_bytes,
        )


_HOLDS = {ModelState.READY: Hold.READY, ModelState.SLEEPING: Hold.SLEEPING}


def _hold(record: ModelRecord, residency: Residency, reserved: Mapping[str, int]) -> Hold:
    if record.state is ModelState.LOADING and dict(reserved) == dict(residency.plan.sleeping_bytes_by_device):
        return Hold.SLEEPING  # it wants to wake, and has not been granted the bytes
    if record.state is ModelState.DRAINING:
        return Hold.LEAVING if residency.quiet.is_set() else Hold.DRAINING
    return _HOLDS.get(record.state, Hold.LOADING)
