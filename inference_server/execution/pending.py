"""A launched step whose tokens, and scores if any, come when the device has them."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from inference_server.execution.rows import accepted_tokens
from inference_server.execution.scoring import ScorePlan, read_scores
from inference_server.scheduling.batch import Batch
from inference_server.scheduling.pending import StepScores


class DeviceStep:
    """A step whose tokens are on their way to the host. The one wait of a step is in `tokens`."""

    def __init__(
        self,
        batch: Batch,
        sampled: torch.Tensor,
        plan: ScorePlan | None = None,
        scores: torch.Tensor | None = None,
    ) -> None:
        """`sampled` [num_rows] and the `scores` of `plan`, on the device. Starts their copies to the host."""
        self._batch = batch
        self._plan = plan
        self._done: torch.cuda.Event | None = None
        self._results: Seq[Seq[int]] | None = None
        self._tokens = _download(sampled)
        self._scores = None if scores is None else _download(scores)
        if sampled.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def tokens(self) -> Seq[Seq[int]]:
        """Wait, then: new tokens of each entry of `batch.sampling`, in order."""
        if self._results is None:
            if self._done is not None:
                self._done.synchronize()
            self._results = accepted_tokens(self._batch, self._tokens.tolist())
        return self._results

    def scores(self) -> StepScores | None:
        """See `PendingStep.scores`."""
        if self._plan is None or self._scores is None:
            return None
        return read_scores(self._plan, self._scores.tolist())


def _download(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host, which is complete once the device has come this far."""
    if not tensor.is_cuda:
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
