"""Bit masks of the tokens that constrained rows may choose: planned on the host, applied on the device."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from inference_server.execution.rows import SampleRow
from inference_server.execution.upload import Ints

_BITS = 32


def _no_words() -> Ints:
    return np.empty((0, 0), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """`rows` of a step's logits, and for each a word for every 32 tokens: `words` [num_rows, num_words]."""

    rows: tuple[int, ...] = ()
    words: Ints = field(default_factory=_no_words)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def ints(self) -> Ints:
        """Row numbers, then words, to be uploaded."""
        return np.concatenate([np.array(self.rows, dtype=np.int32), self.words.reshape(-1)])

    def apply(self, logits: torch.Tensor, ints: torch.Tensor) -> None:
        """Put what is not allowed out of reach. logits [num_rows, vocab_size], changed in place.

        ints: the uploaded numbers.
        """
        rows, words = ints[: len(self.rows)].long(), ints[len(self.rows) :].view(self.words.shape)
        places = torch.arange(_BITS, device=ints.device, dtype=torch.int32)
        bits = (words[:, :, None] >> places) & 1
        allowed = bits.view(len(self.rows), -1)[:, : logits.shape[1]].bool()
        masked = logits.index_select(0, rows).masked_fill_(~allowed, float("-inf"))
        logits.index_copy_(0, rows, masked)


def plan_masks(rows: Seq[SampleRow], vocab_size: int) -> MaskPlan:
    """The masks of the rows whose sequences are constrained."""
    constrained = [
        (number, row.sequence, row.sequence.constraint)
        for number, row in enumerate(rows)
        if row.sequence.constraint is not None
    ]
    if not constrained:
        return MaskPlan()
    words: Ints = np.zeros((len(constrained), -(-vocab_size // _BITS)), dtype=np.int32)
    for line, (_, sequence, constraint) in zip(words, constrained, strict=True):
        constraint.write_mask(sequence.output_token_ids, line.ctypes.data, line.nbytes)
    return MaskPlan(tuple([number for number, _, _ in constrained]), words)
