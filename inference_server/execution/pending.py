"""A launched step whose tokens come when the device has them."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from inference_server.execution.rows import accepted_tokens
from inference_server.scheduling.batch import Batch


class DeviceStep:
    """A step whose tokens are on their way to the host. The one wait of a step is in `tokens`."""

    def __init__(self, batch: Batch, sampled: torch.Tensor) -> None:
        """`sampled` [num_rows], on the device that computes it. Starts its copy to the host."""
        self._batch = batch
        self._done: torch.cuda.Event | None = None
        self._results: Seq[Seq[int]] | None = None
        if sampled.is_cuda:
            self._host = torch.empty(sampled.shape, dtype=sampled.dtype, pin_memory=True)
            self._host.copy_(sampled, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()
        else:
            self._host = sampled.clone()

    def tokens(self) -> Seq[Seq[int]]:
        """Wait, then: new tokens of each entry of `batch.sampling`, in order."""
        if self._results is None:
            if self._done is not None:
                self._done.synchronize()
            self._results = accepted_tokens(self._batch, self._host.tolist())
        return self._results
