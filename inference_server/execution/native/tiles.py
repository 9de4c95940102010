"""Register tiles: a few rows of inputs times one panel of 16 outputs, all sums in registers.

A panel holds the weights of 16 outputs, interleaved so that one load brings the same inputs of all 16:

dense     [columns][16] float32 or bfloat16
8 bits    per 32 inputs: 16 float16 scales, then 8 chunks of [16] 32-bit words; a word holds inputs
          4c…4c+3 of one output as bytes in the order 0, 2, 1, 3, so that two shifts give two pairs of int16
4 bits    per 32 inputs: 16 float16 scales, 16 float16 minimums, then 4 chunks of [16] words; nibble p of
          a word's low half is input 8c+2p, of its high half input 8c+2p+1

Quantized weights meet inputs of 16 bits: `pmaddwd` multiplies pairs of int16 and adds them into int32 (LLVM
makes `vpdpwssd` of it where the CPU has VNNI). 32 products of 16 and 8 bits fit in 31 bits, so every block of
32 inputs is exact; then it is scaled into a float32 sum.

A row's sums do not depend on how many rows share its tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from inference_server.execution.native.vector import (
    FLOAT,
    HALF,
    INT8,
    INT16,
    INT32,
    INT64,
    bfloat16_to_float,
    call,
    constant,
    fused_multiply_add,
    load_unaligned,
    splat,
    store_unaligned,
)

PANEL = 16
GROUP = 32
GROUP_BYTES_8 = PANEL * 2 + PANEL * GROUP
GROUP_BYTES_4 = PANEL * 4 + PANEL * GROUP // 2
_PREFETCH_BYTES = 4096
_LINE_BYTES = 64


def has_avx512(features: dict[str, bool]) -> bool:
    """Whether vectors of 512 bits hold float32 and int16 arithmetic. `features` as LLVM names them."""
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl"))


_FEATURES = llvm.get_host_cpu_features()
_WIDTH = 16 if has_avx512(_FEATURES) else 8
_HAS_VNNI = _WIDTH == 16 and _FEATURES.get("avx512vnni", False)
_VECTORS = PANEL // _WIDTH
TILES = (
    (12, 8, 6, 4, 3, 2, 1) if _WIDTH == 16 else (4, 3, 2, 1)
)  # rows: as many as leave registers for weights
_CHAINS = 12  # products in flight: a multiply-add takes 4 or 5 cycles, and two can begin in each
_FLOATS = ir.VectorType(FLOAT, _WIDTH)
_INTS = ir.VectorType(INT32, _WIDTH)
_PAIRS = ir.VectorType(INT16, 2 * _WIDTH)
_HALVES = ir.VectorType(HALF, _WIDTH)


class _Tile:
    """Writes the instructions of one tile. Addresses are i64 values, offsets are in bytes."""

    def __init__(self, builder: Any, rows: int) -> None:
        self.builder = builder
        self.rows = rows
        self.num_chains = next(n for n in (4, 2, 1) if n == 1 or n * rows * _VECTORS <= _CHAINS)
        self._sums = [
            [[self._variable() for _ in range(self.num_chains)] for _ in range(_VECTORS)] for _ in range(rows)
        ]

    def _variable(self) -> Any:
        """A stack slot that holds zeros, which LLVM turns into a register."""
        slot = cgutils.alloca_once(self.builder, _FLOATS)
        self.builder.store(constant(_FLOATS, 0.0), slot)
        return slot

    def offset(self, address: Any, *terms: Any) -> Any:
        """`address` plus terms; a term is a number of bytes or a pair (number, value) to multiply."""
        for term in terms:
            if isinstance(term, tuple):
                term = self.builder.mul(ir.Constant(INT64, term[0]), term[1])
            elif isinstance(term, int):
                term = ir.Constant(INT64, term)
            address = self.builder.add(address, term)
        return address

    def _pointer(self, address: Any, type_: Any) -> Any:
        return self.builder.inttoptr(address, type_.as_pointer())

    def load(self, address: Any, type_: Any) -> Any:
        """A value of any vector or scalar type."""
        return load_unaligned(self.builder, self._pointer(address, type_))

    def load_splat(self, address: Any, scalar: Any, vector: Any) -> Any:
        """A scalar from memory in each lane."""
        return splat(self.builder, self.load(address, scalar), vector)

    def prefetch(self, address: Any) -> None:
        """Ask for the cache line of an address."""
        pointer = self._pointer(address, INT8)
        type_ = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(self.builder.module, type_, "llvm.prefetch.p0")
        read, keep_in_l2, data = (ir.Constant(INT32, value) for value in (0, 2, 1))
        self.builder.call(function, [pointer, read, keep_in_l2, data])

    def add_pair_products(self, total: Any | None, a: Any, b: Any) -> Any:
        """`total` plus the int16 products of `a` and `b`, added in pairs → int32.

        The instruction is written out, since LLVM would take the two halves of it apart again: one is as fast
        as two where only latency counts, and half as fast here.
        """
        if total is not None and _HAS_VNNI:
            type_ = ir.FunctionType(_INTS, [_INTS, _PAIRS, _PAIRS])
            return self.builder.asm(type_, "vpdpwssd $3, $2, $0", "=v,0,v,v", [total, a, b], False)
        name = "llvm.x86.avx512.pmaddw.d.512" if _WIDTH == 16 else "llvm.x86.avx2.pmadd.wd"
        product = call(self.builder, name, _INTS, [a, b])
        return product if total is None else self.builder.add(total, product)

    def accumulate(self, row: int, vector: int, a: Any, b: Any, chain: int = 0) -> None:
        """sums[row][vector] += a * b, in one of its independent parts."""
        slot = self._sums[row][vector][chain]
        self.builder.store(fused_multiply_add(self.builder, a, b, self.builder.load(slot)), slot)

    def write(self, out: Any, stride: Any, adds: Any, factors: Any | None) -> None:
        """out[row] = sums[row] * factors[row], plus what was there if `adds`. stride in floats."""
        builder = self.builder
        for row in range(self.rows):
            for vector in range(_VECTORS):
                chains = [builder.load(slot) for slot in self._sums[row][vector]]
                value = functools.reduce(builder.fadd, chains)
                if factors is not None:
                    factor = self.load_splat(self.offset(factors, 4 * row), FLOAT, _FLOATS)
                    value = builder.fmul(value, factor)
                place = self._pointer(self.offset(out, (4 * row, stride), vector * _WIDTH * 4), _FLOATS)
                with builder.if_else(adds) as (then, otherwise):
                    with then:
                        total = builder.fadd(value, load_unaligned(builder, place))
                        store_unaligned(builder, total, place)
                    with otherwise:
                        store_unaligned(builder, value, place)


def _pairs_of_4_bits(tile: _Tile, group: Any) -> Iterator[list[Any]]:
    """The 16 pairs of inputs of a group, in order; each as int16 pairs per vector of outputs."""
    mask = constant(_PAIRS, 0x000F)
    for chunk in range(4):
        for nibble in range(4):
            pair = []
            for vector in range(_VECTORS):
                words = tile.load(
                    tile.offset(group, PANEL * 4 + chunk * PANEL * 4 + vector * _WIDTH * 4), _PAIRS
                )
                if nibble:
                    words = tile.builder.lshr(words, constant(_PAIRS, 4 * nibble))
                pair.append(words if nibble == 3 else tile.builder.and_(words, mask))
            yield pair


def _pairs_of_8_bits(tile: _Tile, group: Any) -> Iterator[list[Any]]:
    """See `_pairs_of_4_bits`."""
    byte = constant(_PAIRS, 8)
    for chunk in range(8):
        for high in (False, True):
            pair = []
            for vector in range(_VECTORS):
                words = tile.load(
                    tile.offset(group, PANEL * 2 + chunk * PANEL * 4 + vector * _WIDTH * 4), _PAIRS
                )
                pair.append(tile.builder.ashr(words if high else tile.builder.shl(words, byte), byte))
            yield pair


def _emit_quantized(tile: _Tile, bits: int, arguments: list[Any]) -> None:
    x, x_stride, factors, sums, sums_stride, panel, columns, out, out_stride, adds, prefetch = arguments
    builder = tile.builder
    group_bytes = GROUP_BYTES_4 if bits == 4 else GROUP_BYTES_8
    groups = builder.udiv(columns, ir.Constant(INT64, GROUP))
    with cgutils.for_range(builder, groups) as loop:
        group = tile.offset(panel, (group_bytes, loop.index))
        with builder.if_then(prefetch):
            for line in range(0, group_bytes, _LINE_BYTES):
                tile.prefetch(tile.offset(group, _PREFETCH_BYTES + line))
        inputs = [tile.offset(x, (2 * row, x_stride), (2 * GROUP, loop.index)) for row in range(tile.rows)]
        chains = tile.num_chains
        parts: list[list[list[Any]]] = [[[None] * chains for _ in range(_VECTORS)] for _ in range(tile.rows)]
        pairs = _pairs_of_4_bits(tile, group) if bits == 4 else _pairs_of_8_bits(tile, group)
        for index, weights in enumerate(pairs):
            for row in range(tile.rows):
                both = tile.load_splat(tile.offset(inputs[row], index * 4), INT32, _INTS)
                for vector in range(_VECTORS):
                    chain = parts[row][vector]
                    chain[index % chains] = tile.add_pair_products(
                        chain[index % chains], weights[vector], builder.bitcast(both, _PAIRS)
                    )
        totals = [[functools.reduce(builder.add, chain) for chain in vectors] for vectors in parts]
        for vector in range(_VECTORS):
            halves = tile.offset(group, vector * _WIDTH * 2)
            scale = builder.fpext(tile.load(halves, _HALVES), _FLOATS)
            for row in range(tile.rows):
                tile.accumulate(row, vector, builder.sitofp(totals[row][vector], _FLOATS), scale)
            if bits == 8:
                continue
            minimum = builder.fpext(tile.load(tile.offset(halves, PANEL * 2), _HALVES), _FLOATS)
            for row in range(tile.rows):
                place = tile.offset(sums, (4 * row, sums_stride), (4, loop.index))
                tile.accumulate(row, vector, tile.load_splat(place, FLOAT, _FLOATS), minimum)
    tile.write(out, out_stride, adds, factors)


def quantized_tile(bits: int) -> Any:
    """A tile over a panel of 4 or 8 bits, as a Numba function of addresses:

    (rows, x int16 [rows, x_stride], factors float32 [rows], sums float32 [rows, sums_stride], panel, columns,
    out float32 [rows, out_stride], adds, prefetch): out = (adds ? out : 0) + factors * (x @ panelᵀ).
    `rows` is one of TILES. `sums` are the sums of each 32 inputs of x (read for 4 bits only). `prefetch`: the
    panel is in no cache.
    """

    @intrinsic
    def run(
        _typing: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        factors: Any,
        sums: Any,
        sums_stride: Any,
        panel: Any,
        columns: Any,
        out: Any,
        out_stride: Any,
        adds: Any,
        prefetch: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            _emit_by_rows(builder, arguments, lambda tile, rest: _emit_quantized(tile, bits, rest))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10, types.boolean, types.boolean), generate

    return run


def _emit_by_rows(builder: Any, arguments: list[Any], emit: Callable[[_Tile, list[Any]], None]) -> None:
    """One tile for each number of rows, behind a comparison with the first argument."""
    rows, *rest = arguments
    for size in TILES:
        with builder.if_then(builder.icmp_signed("==", rows, ir.Constant(INT64, size))):
            emit(_Tile(builder, size), rest)


def _emit_dense(tile: _Tile, is_bfloat16: bool, arguments: list[Any]) -> None:
    x, x_stride, panels, table, panel_stride, segments, columns, out, out_stride, adds, prefetch = arguments
    builder = tile.builder
    row_bytes = PANEL * 2 if is_bfloat16 else PANEL * 4
    steps = tile.num_chains  # columns per turn of the loop, each with sums of its own
    with cgutils.for_range(builder, segments) as segment:
        block = tile.load(tile.offset(table, (8, segment.index)), INT64)
        panel = tile.offset(panels, builder.mul(block, panel_stride))
        first = tile.offset(x, builder.mul(segment.index, builder.mul(columns, ir.Constant(INT64, 4))))
        with cgutils.for_range(builder, builder.udiv(columns, ir.Constant(INT64, steps))) as loop:
            place = tile.offset(panel, (row_bytes * steps, loop.index))
            with builder.if_then(prefetch):
                for line in range(0, row_bytes * steps, _LINE_BYTES):
                    tile.prefetch(tile.offset(place, _PREFETCH_BYTES + line))
            for step in range(steps):
                weights = _dense_weights(tile, is_bfloat16, tile.offset(place, step * row_bytes))
                for row in range(tile.rows):
                    at = tile.offset(first, (4 * row, x_stride), (4 * steps, loop.index), 4 * step)
                    value = tile.load_splat(at, FLOAT, _FLOATS)
                    for vector in range(_VECTORS):
                        tile.accumulate(row, vector, value, weights[vector], step)
    tile.write(out, out_stride, adds, None)


def _dense_weights(tile: _Tile, is_bfloat16: bool, place: Any) -> list[Any]:
    """16 weights that meet one input, as vectors of float32."""
    if is_bfloat16:
        type_ = ir.VectorType(INT16, _WIDTH)
        parts = [tile.load(tile.offset(place, vector * _WIDTH * 2), type_) for vector in range(_VECTORS)]
        return [bfloat16_to_float(tile.builder, part) for part in parts]
    return [tile.load(tile.offset(place, vector * _WIDTH * 4), _FLOATS) for vector in range(_VECTORS)]


def dense_tile(is_bfloat16: bool) -> Any:
    """A tile over panels of float32 or bfloat16, as a Numba function of addresses:

    (rows, x float32 [rows, x_stride], panels, table int64 [segments], panel_stride, segments, columns,
    out float32 [rows, out_stride], adds, prefetch). The panel of segment i begins `table[i] * panel_stride`
    bytes after `panels` and meets inputs i*columns…(i+1)*columns-1 of each row: a weight matrix has one
    segment, the values of a paged sequence have one per block. `rows` is one of TILES.
    """

    @intrinsic
    def run(
        _typing: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        panels: Any,
        table: Any,
        panel_stride: Any,
        segments: Any,
        columns: Any,
        out: Any,
        out_stride: Any,
        adds: Any,
        prefetch: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            _emit_by_rows(builder, arguments, lambda tile, rest: _emit_dense(tile, is_bfloat16, rest))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10, types.boolean, types.boolean), generate

    return run
