"""How many bytes per device models may take together, and who has reserved how many.

Owner: the manager (event loop). Knows neither models' states nor what is really free.
"""

from __future__ import annotations

from collections.abc import Mapping

from inference_server.config.catalog import MemorySpec
from inference_server.errors import InternalError
from inference_server.model_manager.devices import HOST, DeviceMemory

DEFAULT_HOST_FRACTION = 0.8  # of what is available when the server starts
DEFAULT_GPU_FRACTION = 0.9  # of the device


def budget_bytes(memory: MemorySpec, devices: Mapping[str, DeviceMemory]) -> dict[str, int]:
    """The budget of each device: what the operator says, else the defaults above."""
    return {
        name: _host_bytes(memory, device) if name == HOST else _gpu_bytes(memory, device.total_bytes)
        for name, device in devices.items()
    }


def _host_bytes(memory: MemorySpec, device: DeviceMemory) -> int:
    if memory.host_bytes is not None:
        return memory.host_bytes
    if memory.host_fraction is not None:
        return int(device.total_bytes * memory.host_fraction)
    return int(device.free_bytes * DEFAULT_HOST_FRACTION)


def _gpu_bytes(memory: MemorySpec, total_bytes: int) -> int:
    if memory.gpu_bytes is not None:
        return min(memory.gpu_bytes, total_bytes)
    fraction = DEFAULT_GPU_FRACTION if memory.gpu_fraction is None else memory.gpu_fraction
    return int(total_bytes * fraction)


class MemoryBudget:
    """Reservations by model name. The sum per device never exceeds the device's capacity."""

    def __init__(self, capacity_bytes: Mapping[str, int]) -> None:
        self._capacity = dict(capacity_bytes)
        self._reserved: dict[str, dict[str, int]] = {}

    @property
    def capacity_bytes(self) -> Mapping[str, int]:
        """The budget of each device."""
        return self._capacity

    def reserved_bytes(self, device: str) -> int:
        """Bytes that models have reserved on `device`."""
        return sum(parts.get(device, 0) for parts in self._reserved.values())

    def unreserved_bytes(self, device: str) -> int:
        """Bytes of the budget that nobody has reserved; 0 for a device that does not exist."""
        return self._capacity.get(device, 0) - self.reserved_bytes(device)

    def reservation(self, model: str) -> Mapping[str, int]:
        """What `model` has reserved per device; empty if nothing."""
        return self._reserved.get(model, {})

    def shortfall(self, device: str, num_bytes: int) -> int:
        """How many of `num_bytes` the budget of `device` cannot give now; 0 if it can."""
        return max(0, num_bytes - self.unreserved_bytes(device))

    def reserve(self, model: str, bytes_by_device: Mapping[str, int]) -> None:
        """Take the bytes for `model`.

        Raises:
            InternalError: they are not there, or the model already has a reservation (the caller must ask).
        """
        if model in self._reserved:
            raise InternalError(f"{model!r} already has a memory reservation")
        for device, num_bytes in bytes_by_device.items():
            if num_bytes < 0 or self.shortfall(device, num_bytes):
                raise InternalError(f"{num_bytes} bytes on {device} are beyond the memory budget")
        self._reserved[model] = dict(bytes_by_device)

    def resize(self, model: str, bytes_by_device: Mapping[str, int]) -> None:
        """Change what `model` has reserved to these bytes; one without a reservation gets its first.

        Raises:
            InternalError: more than the budget has left.
        """
        before = self._reserved.pop(model, None)
        try:
            self.reserve(model, bytes_by_device)
        except InternalError:
            if before is not None:
                self._reserved[model] = before
            raise

    def release(self, model: str) -> None:
        """Give the bytes of `model` back.

        Raises:
            InternalError: it has none; releasing twice would hide a leak elsewhere.
        """
        if self._reserved.pop(model, None) is None:
            raise InternalError(f"{model!r} has no memory reservation to release")
