"""The block table that lives on the device, and its mirror on the host.

A running sequence keeps its row from step to step, so a step sends only the entries that are new: about one
in sixteen decoded tokens begins a block. Owner: the runner.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from inference_server.execution.upload import Ints
from inference_server.scheduling.sequence import Sequence


@dataclass(slots=True)
class _Row:
    number: int
    blocks: list[int] = field(default_factory=list)


class BlockTables:
    """`host` [max_rows, width] mirrors `device` as it will be once the pending changes are applied."""

    def __init__(self, *, max_rows: int, width: int, device: torch.device) -> None:
        self.host: Ints = np.zeros((max_rows, width), dtype=np.int32)
        self.device = torch.zeros((max_rows, width), dtype=torch.int32, device=device)
        self._rows: dict[str, _Row] = {}
        self._free = list(range(max_rows - 1, -1, -1))
        self._places: list[int] = []
        self._values: list[int] = []

    def assign(self, sequences: Seq[Sequence]) -> list[int]:
        """The row of each sequence of a batch, brought up to date on the host.

        Rows of sequences that are not in the batch may be taken away: whoever comes back gets a new one.

        Raises:
            ValueError: there are more sequences than rows, or one has more blocks than the table is wide.
        """
        numbers: list[int] = []
        for sequence in sequences:
            row = self._rows.get(sequence.request_id)
            if row is None:
                row = self._take(sequence.request_id, sequences)
            if row.blocks != sequence.block_ids:
                self._update(row, sequence.block_ids)
            numbers.append(row.number)
        return numbers

    def pending(self) -> tuple[Ints, Ints]:
        """What the device does not have yet: flat places and their block numbers. Forgets them."""
        places, values = self._places, self._values
        self._places, self._values = [], []
        return np.array(places, dtype=np.int32), np.array(values, dtype=np.int32)

    def apply(self, places: torch.Tensor, values: torch.Tensor) -> None:
        """Write uploaded changes into the device's table, in stream order."""
        if places.numel():
            self.device.view(-1).index_copy_(0, places.long(), values)

    def _take(self, request_id: str, sequences: Seq[Sequence]) -> _Row:
        if not self._free:
            present = {sequence.request_id for sequence in sequences}
            for absent in [name for name in self._rows if name not in present]:
                self._free.append(self._rows.pop(absent).number)
        if not self._free:
            raise ValueError(f"a batch has more than {len(self.host)} sequences")
        row = self._rows[request_id] = _Row(self._free.pop())
        return row

    def _update(self, row: _Row, blocks: list[int]) -> None:
        width = self.host.shape[1]
        if len(blocks) > width:
            raise ValueError(f"a sequence has {len(blocks)} blocks; the block table is {width} wide")
        known = row.blocks
        first = 0
        if known == blocks[: len(known)]:
            first = len(known)
        changed = blocks[first:]
        self.host[row.number, first : len(blocks)] = changed
        begin = row.number * width + first
        self._places += range(begin, begin + len(changed))
        self._values += changed
        row.blocks = list(blocks)

    def reset(self) -> None:
        """Forget every row: after a step that failed, nobody knows what the device has."""
        self._free = list(range(len(self.host) - 1, -1, -1))
        self._rows.clear()
        self._places, self._values = [], []
