"""A scheduler's batch → the arrays that the kernels read. Knows no weights and no tensors."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from inference_server.execution.native.attention import MAX_TASK_ROWS
from inference_server.execution.native.model import BLOCK, Batch
from inference_server.execution.rows import new_tokens
from inference_server.scheduling.batch import ScheduledSequence


def build_batch(scheduled: Seq[ScheduledSequence], group_size: int) -> Batch:
    """`group_size`: query heads per kv head. Sampled rows come first, then those that give scores."""
    tokens: list[int] = []
    positions: list[int] = []
    sequence: list[int] = []
    tables: list[list[int]] = []
    tiles: list[tuple[int, int]] = []
    sample_rows: list[int] = []
    score_rows: list[int] = []
    tokens_per_tile = max(1, MAX_TASK_ROWS // group_size)
    for index, item in enumerate(scheduled):
        first, end = len(tokens), item.start + item.num_new_tokens
        last = first + item.num_new_tokens
        tokens += new_tokens(item)
        positions += range(item.start, end)
        sequence += [index] * item.num_new_tokens
        tables.append(item.sequence.block_ids[: -(-end // BLOCK)])
        tiles += [(row, min(row + tokens_per_tile, last)) for row in range(first, last, tokens_per_tile)]
        if item.samples:
            sample_rows += range(last - 1 - len(item.draft_token_ids), last)
        if item.scored:
            score_rows += [first + offset for offset in item.scored_offsets]
    block_tables = np.zeros((len(tables), max(map(len, tables))), dtype=np.int64)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table
    return Batch(
        tokens=_int64(tokens),
        positions=_int64(positions),
        sequence=_int64(sequence),
        block_tables=block_tables,
        tiles=_int64(tiles),
        sample_rows=_int64(sample_rows + score_rows),
    )


def _int64(values: object) -> np.ndarray:
    return np.array(values, dtype=np.int64)
