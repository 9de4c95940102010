"""The engine of a scripted model whose entry says `task: embed`: the real queue over made-up vectors.

A vector depends on the input's tokens only, and equal inputs have equal ones. Needs no torch.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Sequence as Seq

from inference_server.engine.embedding_engine import EmbeddingEngine
from inference_server.scheduling.embedding import BatchLimits
from inference_server.scheduling.embedding_queue import EmbeddingQueue
from inference_server.types import EngineSpec

NUM_DIMENSIONS = 16


class ScriptedEmbedder:
    """A `BatchEmbedder` that hashes. A batch takes `step_ms`."""

    def __init__(self, step_ms: float) -> None:
        self._step_s = step_ms / 1000

    def embed(self, inputs: Seq[Seq[int]], dimensions: Seq[int | None]) -> list[bytes | None]:
        """See `BatchEmbedder.embed`."""
        if self._step_s:
            time.sleep(self._step_s)
        return [_vector(one, size) for one, size in zip(inputs, dimensions, strict=True)]

    def is_fatal(self, error: Exception) -> bool:
        """A scripted failure never spoils the device."""
        return False


def scripted_embedding_engine(spec: EngineSpec, vocab_size: int, step_ms: float) -> EmbeddingEngine:
    """An engine over made-up vectors."""
    limits = BatchLimits(
        max_num_tokens=max(spec.max_model_len, spec.max_num_batched_tokens),
        max_num_seqs=spec.max_num_seqs,
        overhead_tokens=0,
    )
    queue = EmbeddingQueue(limits, max_model_len=spec.max_model_len)
    embedder = ScriptedEmbedder(step_ms)
    return EmbeddingEngine(queue, embedder, vocab_size=vocab_size, num_dimensions=NUM_DIMENSIONS)


def _vector(token_ids: Seq[int], dimensions: int | None) -> bytes:
    """Little-endian float32 numbers of unit length."""
    text = ",".join(map(str, token_ids)).encode()
    digest = hashlib.shake_128(text).digest(NUM_DIMENSIONS)[:dimensions]
    numbers = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(number * number for number in numbers))
    return struct.pack(f"<{len(numbers)}f", *[number / length for number in numbers])
