"""torch's profiler around the steps of this process. It knows neither requests nor messages."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.profiler import ProfilerActivity, profile, record_function


class TorchProfile:
    """What this thread computes, and the GPU for it, from its making until `save`."""

    def __init__(self, device: str) -> None:
        activities = [ProfilerActivity.CPU]
        if device.startswith("cuda") and torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def mark(self, name: str) -> AbstractContextManager[object]:
        """A named range in the trace."""
        return record_function(name)

    def save(self, path: str) -> None:
        """End it, and write the trace; gzipped if `path` says so."""
        self._profile.stop()
        self._profile.export_chrome_trace(path)
