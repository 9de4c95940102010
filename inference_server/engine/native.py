"""Builds the engine of a model that our CPU kernels compute: packed weights → compiled kernels → scheduler.

Whether they can compute it was decided when the load was planned (`checkpoints/native.py`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import torch

from inference_server.checkpoints.facts import model_facts, read_config
from inference_server.checkpoints.inspection import inspect_folder
from inference_server.checkpoints.native import native_shape
from inference_server.engine.contract import Sleepless
from inference_server.engine.cores import usable_cores
from inference_server.engine.grammars import Grammars
from inference_server.engine.native_sleeper import NativeSleeper, native_memory
from inference_server.engine.scheduling import build_scheduler, num_blocks
from inference_server.engine.text_engine import EngineFacts, TextEngine
from inference_server.execution.native.architecture import check_layout, read_architecture
from inference_server.execution.native.kernels import load_step
from inference_server.execution.native.loading import NativeSource, load_native
from inference_server.execution.native.runner import NativeRunner
from inference_server.execution.sampler import Sampler
from inference_server.types import BLOCK_SIZE, EngineSpec

NOT_KEPT = "its packed weights are not kept in the cache folder, so it would have to be loaded anew"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
logger = logging.getLogger(__name__)


def build_native_engine(
    spec: EngineSpec, on_progress: Callable[[str, float | None], None]
) -> tuple[TextEngine, EngineFacts]:
    """Everything from the prepared folder to an engine that takes requests.

    Raises:
        ModelLoadFailed: the checkpoint lacks a tensor, or is not what its configuration says.
    """
    from transformers import AutoConfig

    folder, dtype = Path(spec.folder), DTYPES[spec.dtype]
    inspect_folder(folder, allow_pickle=False, trust_remote_code=False)
    on_progress("load", None)
    num_threads = spec.num_threads or usable_cores()
    # Torch only chooses tokens here; threads of its own would spin on the cores that the kernels need.
    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    architecture = read_architecture(config)
    check_layout(architecture, native_shape(read_config(folder)))
    cache_dir = Path(spec.cache_dir) if spec.cache_dir else None
    load = load_native(
        NativeSource(folder, architecture, spec.quantization, dtype, cache_dir),
        config,
        max_model_len=spec.max_model_len,
        num_threads=num_threads,
        on_progress=lambda fraction: on_progress("load", fraction),
    )
    eos_token_ids = tuple(sorted(model_facts(folder).eos_token_ids))
    scheduler = build_scheduler(spec, eos_token_ids)
    runner = NativeRunner(
        load.model,
        load_step(),
        vocab_size=architecture.vocab_size,
        num_blocks=num_blocks(spec),
        kv_dtype=dtype,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        num_threads=num_threads,
        sampler=Sampler(eos_token_ids, secrets.token_bytes(16)),
    )
    on_progress("warm-up", None)
    runner.warm_up()
    facts = EngineFacts(
        memory=native_memory(runner),
        dtype=spec.dtype,
        kv_cache_tokens=num_blocks(spec) * BLOCK_SIZE,
        vocab_size=architecture.vocab_size,
    )
    logger.info(
        "%s: native CPU kernels, weights %s, %s KV cache of %d blocks of %d tokens, %d threads",
        spec.model,
        spec.quantization if spec.quantization != "none" else spec.dtype,
        spec.dtype,
        num_blocks(spec),
        BLOCK_SIZE,
        num_threads,
    )
    packed = load.packed
    grammars = Grammars(folder, vocab_size=facts.vocab_size, eos_token_ids=eos_token_ids)
    sleeper = Sleepless(NOT_KEPT) if packed is None else NativeSleeper(runner, packed)
    return TextEngine(scheduler, runner, facts.vocab_size, sleeper=sleeper, grammars=grammars), facts
