"""Matrix products over packed panels: picks tiles, keeps inputs in the cache."""

from __future__ import annotations

from typing import Any

from numba import njit

from inference_server.checkpoints.native_weights import BFLOAT16, BITS_4, BITS_8
from inference_server.execution.native.model import (
    COLUMNS,
    FORMAT,
    OFFSET,
    ROWS,
)
from inference_server.execution.native.team import claim
from inference_server.execution.native.tiles import (
    GROUP,
    GROUP_BYTES_4,
    GROUP_BYTES_8,
    PANEL,
    TILES,
    dense_tile,
    quantized_tile,
)
from inference_server.execution.native.vector import address

ROW_BLOCK = 120  # rows whose inputs stay in the second-level cache while panels stream past
_TASKS_PER_BLOCK = 16  # enough for threads to balance, few enough to claim cheaply


_tile_4_bits, _tile_8_bits = quantized_tile(4), quantized_tile(8)
_tile_bfloat16, _tile_float32 = dense_tile(True), dense_tile(False)

compiled = njit(nogil=True, boundscheck=False, error_model="numpy")


@compiled
def _tile_rows(left: int) -> int:
    """Rows of the next tile when `left` are left."""
    for size in TILES:
        if left >= size:
            return size
    return 1


def _quantized_panel(tile: Any) -> Any:
    """One panel times rows [first, last) of 16-bit inputs, in tiles."""

    @compiled
    def run(
        quantized: Any,
        factors: Any,
        sums: Any,
        first: int,
        last: int,
        panel: int,
        columns: int,
        out: Any,
        out_start: int,
        adds: bool,
    ) -> None:
        row = first
        stride = quantized.shape[1]
        groups = sums.shape[1]
        width = out.shape[1]
        flat, flat_sums, flat_out = quantized.reshape(-1), sums.reshape(-1), out.reshape(-1)
        while row < last:
            x = address(flat, row * stride)
            f = address(factors, row)
            s = address(flat_sums, row * groups)
            o = address(flat_out, row * width + out_start)
            rows = _tile_rows(last - row)
            tile(rows, x, stride, f, s, groups, panel, columns, o, width, adds, row == first)
            row += rows

    return run


def _dense_rows(tile: Any) -> Any:
    """Panels in segments (see `tiles.dense_tile`) times `rows` rows of float32 inputs, in tiles."""

    @compiled
    def run(
        rows: int,
        x: int,
        x_stride: int,
        panels: int,
        table: int,
        panel_stride: int,
        segments: int,
        columns: int,
        out: int,
        out_stride: int,
        adds: bool,
        prefetch: bool,
    ) -> None:
        row = 0
        while row < rows:
            a = x + 4 * row * x_stride
            o = out + 4 * row * out_stride
            fresh = prefetch and row == 0
            size = _tile_rows(rows - row)
            tile(
                size, a, x_stride, panels, table, panel_stride, segments, columns, o, out_stride, adds, fresh
            )
            row += size

    return run


_panel_4_bits, _panel_8_bits = _quantized_panel(_tile_4_bits), _quantized_panel(_tile_8_bits)
dense_rows_bfloat16, dense_rows_float32 = _dense_rows(_tile_bfloat16), _dense_rows(_tile_float32)


@compiled
def panel_bytes(format_: int, columns: int) -> int:
    """Bytes of one panel of 16 outputs."""
    if format_ == BITS_4:
        return columns // GROUP * GROUP_BYTES_4
    if format_ == BITS_8:
        return columns // GROUP * GROUP_BYTES_8
    return columns * PANEL * (2 if format_ == BFLOAT16 else 4)


@compiled
def multiply(
    model: Any, scratch: Any, matrix: int, num_rows: int, out: Any, adds: bool, counters: Any, phase: int
) -> None:
    """out[:num_rows] = (adds ? out : 0) + inputs @ matrixᵀ: this thread's share of it.

    Inputs are `scratch.inputs` or `scratch.quantized`, whichever the matrix's format meets. `out` has the
    matrix's rows, padded to whole panels, as columns.
    """
    format_ = model.matrices[matrix, FORMAT]
    columns = model.matrices[matrix, COLUMNS]
    num_panels = (model.matrices[matrix, ROWS] + PANEL - 1) // PANEL
    size = panel_bytes(format_, columns)
    weights = address(model.arena, model.matrices[matrix, OFFSET])
    panels_per_task = max(1, num_panels // _TASKS_PER_BLOCK)
    tasks_per_block = (num_panels + panels_per_task - 1) // panels_per_task
    num_tasks = tasks_per_block * ((num_rows + ROW_BLOCK - 1) // ROW_BLOCK)
    inputs = scratch.inputs.reshape(-1)
    input_stride = scratch.inputs.shape[1]
    flat_out = out.reshape(-1)
    width = out.shape[1]
    zero = address(counters, counters.size - 1)  # never counted: a table of one segment at offset 0
    while True:
        task = claim(counters, phase, 1)
        if task >= num_tasks:
            return
        first = task // tasks_per_block * ROW_BLOCK
        last = min(first + ROW_BLOCK, num_rows)
        first_panel = task % tasks_per_block * panels_per_task
        for panel in range(first_panel, min(first_panel + panels_per_task, num_panels)):
            place = weights + panel * size
            if format_ == BITS_4:
                _panel_4_bits(
                    scratch.quantized,
                    scratch.factors,
                    scratch.sums,
                    first,
                    last,
                    place,
                    columns,
                    out,
                    panel * PANEL,
                    adds,
                )
            elif format_ == BITS_8:
                _panel_8_bits(
                    scratch.quantized,
                    scratch.factors,
                    scratch.sums,
                    first,
                    last,
                    place,
                    columns,
                    out,
                    panel * PANEL,
                    adds,
                )
            else:
                x = address(inputs, first * input_stride)
                o = address(flat_out, first * width + panel * PANEL)
                if format_ == BFLOAT16:
                    dense_rows_bfloat16(
                        last - first, x, input_stride, place, zero, 0, 1, columns, o, width, adds, True
                    )
                else:
                    dense_rows_float32(
                        last - first, x, input_stride, place, zero, 0, 1, columns, o, width, adds, True
                    )
