"""Compile the CPU kernels before anybody waits for them.

`make install` runs this module; see its `main`. A worker that finds nothing in the cache compiles for itself
while it loads.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from inference_server.checkpoints.native_weights import FLOAT32
from inference_server.execution.native.kernels import load_step
from inference_server.execution.native.model import (
    NUM_LAYER_FIELDS,
    Model,
)
from inference_server.execution.native.packing import pack_dense
from inference_server.execution.native.runner import NativeRunner
from inference_server.execution.sampler import Sampler

_WIDTH = 32  # of the smallest model that the kernels take: only the types of its arrays matter


def main() -> int:
    """Compile for both number formats of the KV cache; returns the exit status."""
    started_s = time.monotonic()
    for kv_dtype in (torch.bfloat16, torch.float32):
        _runner(kv_dtype).warm_up()
    sys.stdout.write(f"CPU kernels are ready ({time.monotonic() - started_s:.0f} s)\n")
    return 0


def _runner(kv_dtype: torch.dtype) -> NativeRunner:
    arena = pack_dense(torch.zeros(_WIDTH, _WIDTH))
    model = Model(
        arena=arena,
        matrices=np.array([[FLOAT32, 0, _WIDTH, _WIDTH]], dtype=np.int64),
        vectors=np.ones(3 * _WIDTH, dtype=np.float32),
        rope=np.zeros(_WIDTH, dtype=np.float32),
        layers=np.zeros((1, NUM_LAYER_FIELDS), dtype=np.int64),  # the one matrix and vector for everything
        embedding=0,
        head=0,
        final_norm=0,
        hidden_size=_WIDTH,
        num_heads=1,
        num_kv_heads=1,
        head_dim=_WIDTH,
        intermediate_size=_WIDTH,
        activation=0,
        norm_epsilon=1e-5,
        attention_scale=1.0,
        embedding_scale=1.0,
    )
    return NativeRunner(
        model,
        load_step(),
        vocab_size=_WIDTH,
        num_blocks=1,
        kv_dtype=kv_dtype,
        max_num_batched_tokens=1,
        num_threads=1,
        sampler=Sampler((), b""),
    )


if __name__ == "__main__":
    sys.exit(main())
