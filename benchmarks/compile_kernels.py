"""Compile every Triton kernel to machine code for a GPU that need not be here; one line each.

`python -m benchmarks.compile_kernels 90`, where 90 is the compute capability.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from inference_server.execution.triton_kernels import attention, fused, nucleus

HALF, FLOAT, INT = "*bf16", "*fp32", "*i32"
ATTEND_POINTERS = (HALF, HALF, HALF, HALF, FLOAT, FLOAT, FLOAT, INT, INT, INT, INT, HALF)
ATTEND_NUMBERS = ("fp32", "fp32", *("i32",) * 6)


def attend(**changes: Any) -> dict[str, Any]:
    """Constants of a decode of an 8B Llama, changed."""
    constants: dict[str, Any] = {
        "GROUP": 4,
        "KEY_DIM": 128,
        "KEY_PAD": 128,
        "VALUE_DIM": 128,
        "VALUE_PAD": 128,
        "BLOCK_SIZE": 16,
        "TILE": 64,
        "ROWS": 16,
        "QUERIES": 1,
        "WINDOW": 0,
        "CAPPED": False,
        "SINKS": False,
        "SPLITS": 1,
        "DECODE": True,
    }
    return constants | changes


ODD = {"KEY_DIM": 96, "VALUE_DIM": 80, "WINDOW": 512, "CAPPED": True, "SINKS": True}
CASES: list[tuple[str, Any, tuple[str, ...], dict[str, Any]]] = [
    ("attend: decode", attention.attend, ATTEND_POINTERS + ATTEND_NUMBERS, attend()),
    ("attend: split decode", attention.attend, ATTEND_POINTERS + ATTEND_NUMBERS, attend(SPLITS=16)),
    (
        "attend: chunks",
        attention.attend,
        ATTEND_POINTERS + ATTEND_NUMBERS,
        attend(ROWS=64, QUERIES=16, DECODE=False),
    ),
    (
        "attend: chunks, everything odd",
        attention.attend,
        ATTEND_POINTERS + ATTEND_NUMBERS,
        attend(ROWS=32, QUERIES=8, DECODE=False, **ODD),
    ),
    (
        "attend: head size 256",
        attention.attend,
        ATTEND_POINTERS + ATTEND_NUMBERS,
        attend(
            KEY_DIM=256, KEY_PAD=256, VALUE_DIM=256, VALUE_PAD=256, TILE=32, ROWS=64, QUERIES=16, DECODE=False
        ),
    ),
    (
        "reduce_splits",
        attention.reduce_splits,
        (HALF, FLOAT, FLOAT, FLOAT, HALF, "i32"),
        {"VALUE_DIM": 128, "VALUE_PAD": 128, "SPLITS": 16, "SINKS": True},
    ),
    (
        "store_tokens",
        attention.store_tokens,
        (HALF, HALF, HALF, HALF, INT, *("i32",) * 5),
        {"KEY_DIM": 128, "KEY_PAD": 128, "VALUE_DIM": 128, "VALUE_PAD": 128},
    ),
    (
        "rms_norm",
        fused.rms_norm,
        (HALF, HALF, HALF, "fp32"),
        {"WIDTH": 4096, "PAD": 4096, "OFFSET": 0.0, "ROUND_FIRST": True},
    ),
    ("silu_and_multiply", fused.silu_and_multiply, (HALF, HALF, HALF, *("i32",) * 3), {"TILE": 1024}),
    ("rotate", fused.rotate, (HALF,) * 6 + ("i32",) * 6, {"HALF": 64, "PAD": 64}),
    ("nucleus_thresholds", nucleus.nucleus_thresholds, (FLOAT, FLOAT, FLOAT, "i32"), {"TILE": 4096}),
]


def main(argv: list[str]) -> int:
    """Compile everything; the exit status is the number of failures."""
    capability = int(argv[0]) if argv else 90
    failures = 0
    for name, kernel, types, constants in CASES:
        names = [argument for argument in kernel.arg_names if argument not in constants]
        signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()},
        )
        started_s = time.perf_counter()
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        except Exception as error:
            failures += 1
            print(f"{name}: {type(error).__name__}: {error}")
            continue
        seconds = time.perf_counter() - started_s
        size = len(compiled.asm["cubin"])
        print(f"{name}: {size} bytes, {compiled.metadata.shared} bytes shared, {seconds:.1f} s")
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
