"""What a worker needs besides weights and KV cache: a step's temporary tensors and the process's own context.

Estimates, from the model's config and the engine's limits; rounded up where families differ. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference_server.checkpoints.facts import first_int, text_config
from inference_server.checkpoints.native import GROUP, NativeShape

MIB = 1024 * 1024

# Private memory of a worker forked from the fork server, less weights and KV cache: Python and torch pages
# that are no longer shared, the thread pool and its scratch, what loading left in the allocator. Measured:
# 271 MiB for SmolLM2-135M in float32 after its load (Private_* of smaps_rollup, torch 2.13, 2 threads).
CPU_CONTEXT_BYTES = 280 * MIB
# The same with the native kernels: Numba and LLVM, the kernels' code, what packing left in the allocator.
# Measured: 340 MiB for the same model as `gguf`, kernels read from the cache. A start that has to compile
# them first takes some 210 MiB more.
NATIVE_CONTEXT_BYTES = 380 * MIB
# The same for a worker that uses a GPU: the driver's and the libraries' host memory come on top. A cautious
# guess, as is the next one; neither has been measured here yet.
CUDA_HOST_CONTEXT_BYTES = 1024 * MIB
# What a CUDA context with its loaded kernels and cuBLAS workspaces takes on the device.
CUDA_DEVICE_CONTEXT_BYTES = 640 * MIB
# A scripted worker holds no tensors and imports no torch.
SCRIPTED_CONTEXT_BYTES = 4 * MIB

_HIDDEN_COPIES = 8  # residual, normed input, query, key, value, attended, output, one spare
_MLP_COPIES = 3  # gate, up, product
_BYTES_PER_LOGIT = 24  # float32 logits, scaled copy, sorted copy with int64 indices, probabilities
_ROW_PADDING = 16  # numbers by which a row of the native kernels' scratch memory may be longer
_GATHERED_COPIES = 2  # a layer's keys and values as read through block tables, and contiguous for the kernel


@dataclass(frozen=True, slots=True)
class StepShape:
    """The largest step an engine may take."""

    max_num_batched_tokens: int
    max_num_seqs: int
    vocab_size: int
    num_layers: int
    kv_cache_bytes: int
    itemsize: int  # bytes per number of the compute dtype


def workspace_bytes(config: Mapping[str, Any], step: StepShape) -> int:
    """Peak bytes of temporary tensors in one step: one layer's activations, attention reads, logits."""
    text = text_config(config)
    hidden = first_int(text, ("hidden_size", "n_embd", "d_model")) or 0
    heads = first_int(text, ("num_attention_heads", "n_head", "n_heads")) or 1
    width = max(hidden, heads * (first_int(text, ("head_dim",)) or 0))
    mlp = first_int(text, ("intermediate_size", "n_inner", "ffn_dim")) or 4 * hidden
    per_token = (_HIDDEN_COPIES * width + _MLP_COPIES * mlp) * step.itemsize
    activations = step.max_num_batched_tokens * per_token
    logits = step.max_num_seqs * step.vocab_size * _BYTES_PER_LOGIT
    return activations + gathered_bytes(step) + logits


def gathered_bytes(step: StepShape) -> int:
    """What torch copies of one layer's keys and values if a step reads the whole KV cache."""
    return _GATHERED_COPIES * step.kv_cache_bytes // max(1, step.num_layers)


def native_workspace_bytes(shape: NativeShape, step: StepShape) -> int:
    """The same for the native CPU kernels: their scratch memory (`execution/native/model.py`), and logits.

    Threads' own parts are a few dozen KiB each and not counted.
    """
    attended = shape.query_size
    widest = _row_length(max(shape.hidden_size, shape.intermediate_size, attended))
    per_row = 4 * 2 * _row_length(shape.hidden_size)  # residual stream, branch
    per_row += (4 + 2) * widest  # inputs of a matrix, and their 16-bit copy
    per_row += 4 * (widest // GROUP + 1)  # the copy's sums and factor
    per_row += 4 * _row_length(attended + 2 * shape.kv_size)  # queries, keys and values
    per_row += 4 * _row_length(attended)  # attention's output
    per_row += 4 * _row_length(2 * shape.intermediate_size)  # gate and up
    return step.max_num_batched_tokens * per_row + step.max_num_seqs * step.vocab_size * _BYTES_PER_LOGIT


def _row_length(width: int) -> int:
    """Numbers from one row to the next, at most: rows a power of two apart would share cache lines."""
    return width + _ROW_PADDING
