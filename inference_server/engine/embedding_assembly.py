"""Builds the engine of an embedding model: load → self-test → queue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from inference_server.checkpoints.sentence import read_sentence_config
from inference_server.engine.cores import usable_cores
from inference_server.engine.embedding_engine import EmbeddingEngine
from inference_server.engine.process_memory import resident_bytes
from inference_server.engine.text_engine import EngineFacts
from inference_server.errors import InsufficientMemory
from inference_server.execution.embedder import Embedder, check_isolation
from inference_server.loading.encoder import LoadedEncoder, load_encoder
from inference_server.scheduling.embedding import BatchLimits
from inference_server.scheduling.embedding_queue import EmbeddingQueue
from inference_server.types import EngineSpec, MemoryReport

# What a step costs besides its tokens, in tokens' worth of work. Measured for MiniLM on 2 cores in float32:
# one input of 22 tokens takes 5.2 ms, each of 64 together 1.8 ms. On a GPU a step this small is all launches.
OVERHEAD_TOKENS = {"cpu": 40, "cuda": 4096}
logger = logging.getLogger(__name__)


def build_embedding_engine(
    spec: EngineSpec, on_progress: Callable[[str, float | None], None]
) -> tuple[EmbeddingEngine, EngineFacts]:
    """Everything from the prepared folder to an engine that takes requests.

    Raises:
        ModelLoadFailed: the model cannot be loaded or served.
        InsufficientMemory: the device ran out of memory.
    """
    torch.set_num_threads(spec.num_threads or usable_cores())
    on_progress("load", None)
    folder = Path(spec.folder)
    sentence = read_sentence_config(folder)
    try:
        loaded = load_encoder(
            folder,
            sentence,
            device=spec.device,
            dtype=spec.dtype,
            trust_remote_code=spec.trust_remote_code,
        )
        embedder = Embedder(
            loaded.encoder,
            poolings=sentence.poolings,
            dense=loaded.dense,
            normalize=sentence.normalize,
            device=loaded.device,
        )
        on_progress("check", None)
        num_dimensions = check_isolation(embedder, loaded.dtype, loaded.vocab_size)
    except torch.OutOfMemoryError as error:
        raise InsufficientMemory(f"the device ran out of memory while loading {spec.model!r}") from error
    logger.info(
        "%s: embeddings of %d dimensions, %s on %s, %d threads",
        spec.model,
        num_dimensions,
        spec.dtype,
        loaded.device,
        torch.get_num_threads(),
    )
    queue = EmbeddingQueue(_limits(spec, loaded), max_model_len=spec.max_model_len)
    engine = EmbeddingEngine(queue, embedder, vocab_size=loaded.vocab_size, num_dimensions=num_dimensions)
    return engine, _facts(spec, loaded)


def _limits(spec: EngineSpec, loaded: LoadedEncoder) -> BatchLimits:
    return BatchLimits(
        max_num_tokens=spec.max_num_batched_tokens,
        max_num_seqs=spec.max_num_seqs,
        overhead_tokens=OVERHEAD_TOKENS[loaded.device.type],
    )


def _facts(spec: EngineSpec, loaded: LoadedEncoder) -> EngineFacts:
    memory = MemoryReport(
        weights_bytes=loaded.weights_bytes, kv_cache_bytes=0, workspace_bytes=0, rss_bytes=resident_bytes()
    )
    return EngineFacts(memory=memory, dtype=spec.dtype, kv_cache_tokens=0, vocab_size=loaded.vocab_size)
