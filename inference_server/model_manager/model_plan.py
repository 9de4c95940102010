"""A plan: the message that loads a model, and the bytes that this takes. A frozen value; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inference_server.checkpoints.facts import ModelFacts
from inference_server.worker.protocol import Load


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The message that loads a model, and what it takes. `bytes_by_device` is what must be reserved.

    `sleeping_bytes_by_device` is what its worker still holds while it sleeps; empty if it never sleeps.
    `is_measured`: workspace and context are what an earlier worker was seen to need, not estimates. `why`
    says in words where the quantization comes from.
    """

    load: Load
    facts: ModelFacts
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    context_bytes: int
    bytes_by_device: Mapping[str, int]
    sleeping_bytes_by_device: Mapping[str, int] = field(default_factory=dict)
    is_measured: bool = False
    why: str = ""

    @property
    def device(self) -> str:
        """Where the weights go: "cpu" or "cuda:N"."""
        return self.load.device

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus output, in tokens."""
        return self.load.max_model_len


def fits(bytes_by_device: Mapping[str, int], capacity_bytes: Mapping[str, int]) -> bool:
    """Whether every device's part is within its capacity."""
    return all(needed <= capacity_bytes.get(device, 0) for device, needed in bytes_by_device.items())
