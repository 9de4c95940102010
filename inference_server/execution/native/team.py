"""The threads that share one step, and how they share it.

A step is a list of phases; a phase is a number of independent tasks. Threads claim tasks from a counter per
phase, so a thread whose core is taken away for a while simply does fewer, and meet at a barrier after each
phase. A waiting thread spins for some microseconds and then yields its core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from inference_server.execution.native.vector import INT32, INT64, element_pointer

_SPACING = 8  # int64 values between counters: one cache line
_STAMP = 1  # where a phase's line holds the time of its end
_SPINS = 4000


@intrinsic
def _fetch_add(_typing: Any, array: Any, index: Any, amount: Any) -> Any:
    """Atomically add to an int64 element; → its value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = element_pointer(context, builder, signature, arguments, INT64)
        amount = context.cast(builder, arguments[2], signature.args[2], types.int64)
        return builder.atomic_rmw("add", pointer, amount, "seq_cst")

    return types.int64(array, index, amount), generate


@intrinsic
def _read(_typing: Any, array: Any, index: Any) -> Any:
    """Atomically read an int64 element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = element_pointer(context, builder, signature, arguments, INT64)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, index), generate


@intrinsic
def _pause(_typing: Any) -> Any:
    """Tell the core that this is a spin loop."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        type_ = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, type_, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _yield_core(_typing: Any) -> Any:
    """sched_yield(2)."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        type_ = ir.FunctionType(INT32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, type_, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _cycles(_typing: Any) -> Any:
    """The processor's time stamp counter."""

    def generate(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        type_ = ir.FunctionType(INT64, [])
        function = cgutils.get_or_insert_function(builder.module, type_, "llvm.readcyclecounter")
        return builder.call(function, [])

    return types.int64(), generate


@njit(nogil=True)
def claim(counters: Any, phase: int, count: int) -> int:
    """The first of the next `count` tasks of a phase (the caller checks it against the phase's size)."""
    return int(_fetch_add(counters, (phase + 1) * _SPACING, count))


@njit(nogil=True)
def meet(counters: Any, phase: int, num_threads: int) -> None:
    """Return once all threads have come to the end of this phase. The last one notes the time."""
    expected = (phase + 1) * num_threads
    if _fetch_add(counters, 0, 1) + 1 == expected:
        counters[(phase + 1) * _SPACING + _STAMP] = _cycles()
        return
    spins = 0
    while _read(counters, 0) < expected:
        spins += 1
        if spins < _SPINS:
            _pause()
        else:
            _yield_core()


def phase_ends(counters: np.ndarray) -> np.ndarray:
    """When each phase of the last step ended, in cycles of the time stamp counter; 0 for phases it lacked."""
    return counters.reshape(-1, _SPACING)[1:, _STAMP]


def new_counters(num_phases: int) -> np.ndarray:
    """Counters for one step, all zero; fill with zero again before the next."""
    return np.zeros((num_phases + 1) * _SPACING, dtype=np.int64)


class Team:
    """`num_threads - 1` helper threads and the caller, running one function together.

    The function must release the GIL. Owner: the runner; used by one thread at a time.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._work: Callable[[int], None] | None = None
        self._starts = [threading.Semaphore(0) for _ in range(num_threads - 1)]
        self._done = threading.Semaphore(0)
        for index in range(num_threads - 1):
            threading.Thread(
                target=self._help, args=(index,), name=f"kernel-{index + 1}", daemon=True
            ).start()

    def run(self, work: Callable[[int], None]) -> None:
        """Call `work(thread)` for each thread number at the same time; returns when all have."""
        self._work = work
        for start in self._starts:
            start.release()
        try:
            work(0)
        finally:
            for _ in self._starts:
                self._done.acquire()

    def forget(self) -> None:
        """Let go of the last work, and so of all that it refers to."""
        self.run(_nothing)

    def close(self) -> None:
        """End the helper threads."""
        self._work = None
        for start in self._starts:
            start.release()

    def _help(self, index: int) -> None:
        while True:
            self._starts[index].acquire()
            work = self._work
            if work is None:
                return
            try:
                work(index + 1)
            finally:
                self._done.release()


def _nothing(thread: int) -> None:
    pass
