"""All host numbers of a step on their way to the device: one buffer, one copy, no wait."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


def upload(
    ints: Seq[Ints], floats: Floats, device: torch.device
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Copy → (one int32 tensor per array, one float64 tensor), views of one device buffer.

    For CUDA the host buffer is pinned and comes from torch's caching allocator, which hands it out again
    only after the copy is over; so nothing here waits, and steps may overlap.
    """
    sizes = [len(part) for part in ints]
    num_floats = len(floats)
    on_cuda = device.type == "cuda"
    host = torch.empty(2 * num_floats + sum(sizes), dtype=torch.int32, pin_memory=on_cuda)
    buffer = host.numpy()
    buffer[: 2 * num_floats] = floats.view(np.int32)  # first, so that 8-byte numbers are aligned
    if ints:
        np.concatenate(ints, out=buffer[2 * num_floats :])
    there = host.to(device, non_blocking=True) if on_cuda else host
    views = torch.split(there[2 * num_floats :], sizes)
    return views, there[: 2 * num_floats].view(torch.float64)
