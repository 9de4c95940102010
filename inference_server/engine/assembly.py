"""Builds the engine of a real model: load → self-test → KV cache → runner → scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from inference_server.engine.contract import Sleeper, Sleepless
from inference_server.engine.cores import usable_cores
from inference_server.engine.device_sleeper import DeviceSleeper
from inference_server.engine.grammars import Grammars
from inference_server.engine.native import build_native_engine
from inference_server.engine.process_memory import resident_bytes
from inference_server.engine.runners import build_runner
from inference_server.engine.scheduling import build_scheduler, num_blocks
from inference_server.engine.text_engine import EngineFacts, TextEngine
from inference_server.errors import InsufficientMemory
from inference_server.execution.admission import probe
from inference_server.execution.attention.binding import INTERFACE_NAME, register
from inference_server.execution.cuda_runner import CudaRunner
from inference_server.execution.cuda_setup import prepare_for_cuda
from inference_server.execution.kv_cache import KVCache
from inference_server.execution.linear_layout import optimise_linear_layout
from inference_server.execution.parking import Parking
from inference_server.execution.runner import Runner
from inference_server.loading.loader import LoadedModel, load_model, storages
from inference_server.types import BLOCK_SIZE, EngineSpec, MemoryReport

ProgressCallback = Callable[[str, float | None], None]
logger = logging.getLogger(__name__)


def build_text_engine(spec: EngineSpec, on_progress: ProgressCallback) -> tuple[TextEngine, EngineFacts]:
    """Everything from the prepared folder to an engine that takes requests.

    Raises:
        ModelLoadFailed: the model cannot be loaded or served.
        InsufficientMemory: the device ran out of memory.
    """
    if spec.kernels == "native":
        return build_native_engine(spec, on_progress)
    torch.set_num_threads(spec.num_threads or min(torch.get_num_threads(), usable_cores()))
    register()
    on_progress("load", None)
    try:
        loaded = load_model(
            Path(spec.folder),
            device=spec.device,
            dtype=spec.dtype,
            quantization=spec.quantization,
            max_model_len=spec.max_model_len,
            attention=INTERFACE_NAME,
            trust_remote_code=spec.trust_remote_code,
            unpacks=spec.unpacks,
            cache_dir=Path(spec.cache_dir) if spec.cache_dir else None,
        )
        return assemble(loaded, spec, on_progress)
    except torch.OutOfMemoryError as error:
        raise InsufficientMemory(f"the device ran out of memory while loading {spec.model!r}") from error


def assemble(
    loaded: LoadedModel, spec: EngineSpec, on_progress: ProgressCallback
) -> tuple[TextEngine, EngineFacts]:
    """An engine over a loaded model."""
    if loaded.device.type == "cpu":
        optimise_linear_layout(loaded.model)
    elif loaded.device.type == "cuda":
        prepare_for_cuda(loaded)
    on_progress("check", None)
    layers = probe(loaded.model, loaded.config, loaded.device, loaded.dtype)
    cache = KVCache(
        [layer.shape for layer in layers],
        num_blocks=num_blocks(spec),
        block_size=BLOCK_SIZE,
        dtype=loaded.dtype,
        device=loaded.device,
    )
    runner, attention = build_runner(loaded, layers, cache, spec)
    scheduler = build_scheduler(spec, loaded.eos_token_ids)
    facts = EngineFacts(
        memory=MemoryReport(
            weights_bytes=loaded.weights_bytes,
            kv_cache_bytes=cache.num_bytes,
            workspace_bytes=0,
            rss_bytes=resident_bytes(),
        ),
        dtype=str(loaded.dtype).removeprefix("torch."),
        kv_cache_tokens=num_blocks(spec) * BLOCK_SIZE,
        vocab_size=loaded.vocab_size,
    )
    logger.info(
        "%s: %s on %s, attention %s, %d KV blocks of %d tokens, %d threads",
        spec.model,
        facts.dtype,
        loaded.device,
        attention,
        cache.num_blocks,
        BLOCK_SIZE,
        torch.get_num_threads(),
    )
    grammars = Grammars(Path(spec.folder), vocab_size=facts.vocab_size, eos_token_ids=loaded.eos_token_ids)
    sleeper = _sleeper(loaded, runner, cache)
    return TextEngine(scheduler, runner, facts.vocab_size, sleeper=sleeper, grammars=grammars), facts


def _sleeper(loaded: LoadedModel, runner: Runner | CudaRunner, cache: KVCache) -> Sleeper | Sleepless:
    if loaded.device.type != "cuda" or not isinstance(runner, CudaRunner):
        return Sleepless("torch holds its weights in memory of its own, and would have to load them anew")
    on_device = [storage for storage in storages(loaded.model) if storage.device.type == "cuda"]
    return DeviceSleeper(runner, cache, Parking(on_device, locks_pages=True))
