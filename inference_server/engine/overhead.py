"""Measures what an engine needs beside weights and KV cache, around a rehearsal of its largest step.

On a CPU that is the process's private memory; on a GPU torch's allocator and, where it can tell, the driver
are asked. Runs in the worker, once per model and settings: the server remembers the result.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
from typing import Any

import torch

from inference_server.engine.process_memory import (
    ProcessMemory,
    anonymous_bytes,
    process_memory,
    reset_peak,
    touched_bytes,
)
from inference_server.engine.rehearsal import rehearse
from inference_server.engine.text_engine import EngineFacts, TextEngine
from inference_server.execution.native.kernels import load_step
from inference_server.execution.native.runner import NativeRunner
from inference_server.execution.runner import Runner
from inference_server.types import EngineSpec, MeasuredOverhead

logger = logging.getLogger(__name__)


def measure_overhead(engine: TextEngine, facts: EngineFacts, spec: EngineSpec) -> MeasuredOverhead | None:
    """Run the largest step; None where nothing of use could be measured.

    Raises:
        InternalError: that step failed.
        torch.OutOfMemoryError: the device is too small for it.
    """
    gc.collect()
    if torch.device(spec.device).type == "cuda":
        return _measure_on_gpu(engine, facts, spec)
    if spec.kernels == "native" and load_step().stats.cache_misses:  # type: ignore[attr-defined]
        logger.info("%s: its memory is measured at the next load: this one compiled kernels", spec.model)
        return None
    return _measure_on_cpu(engine, spec, facts.memory.kv_cache_bytes)


def _measure_on_cpu(engine: TextEngine, spec: EngineSpec, kv_cache_bytes: int) -> MeasuredOverhead | None:
    runner = engine.runner
    if not isinstance(runner, NativeRunner | Runner):
        return None
    loaded = _of_process(runner)
    if loaded is None or not reset_peak():
        return None
    rehearse(runner, spec, engine.vocab_size)
    stepped = _of_process(runner)
    return None if stepped is None else cpu_overhead(loaded, stepped, kv_cache_bytes)


def _of_process(runner: NativeRunner | Runner) -> ProcessMemory | None:
    """The process's private memory without weights and KV cache, as far as these have pages of their own."""
    memory = process_memory()
    if memory is None:
        return None
    held = anonymous_bytes(runner.weight_regions) + touched_bytes(runner.kv_regions)
    return ProcessMemory(memory.private_bytes - held, memory.peak_private_bytes - held)


def cpu_overhead(loaded: ProcessMemory, stepped: ProcessMemory, kv_cache_bytes: int) -> MeasuredOverhead:
    """The overhead from the process's memory, weights and KV cache not counted, after load and largest step.

    What the load needed for a moment counts where the KV cache, which was not there yet, does not cover it.
    """
    context = max(0, loaded.private_bytes)
    peak = max(stepped.peak_private_bytes, loaded.peak_private_bytes - kv_cache_bytes)
    return MeasuredOverhead(context_bytes=context, workspace_bytes=max(0, peak - context))


def _measure_on_gpu(engine: TextEngine, facts: EngineFacts, spec: EngineSpec) -> MeasuredOverhead:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(spec.device)
    rehearse(engine.runner, spec, engine.vocab_size)
    torch.cuda.synchronize(spec.device)
    peak = torch.cuda.max_memory_reserved(spec.device)
    used = driver_bytes(str(torch.cuda.get_device_properties(spec.device).uuid))
    host = process_memory()
    return MeasuredOverhead(
        context_bytes=None if used is None else max(0, used - torch.cuda.memory_reserved(spec.device)),
        workspace_bytes=max(0, peak - facts.memory.weights_bytes - facts.memory.kv_cache_bytes),
        host_bytes=0 if host is None else host.private_bytes,
    )


def driver_bytes(uuid: str, nvml: Any = None) -> int | None:
    """What the driver says that this process holds on the GPU with `uuid`; None where it cannot tell.

    In a container the driver knows us under another process id, and does not find us.
    """
    library = nvml if nvml is not None else importlib.import_module("pynvml")
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    try:
        handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        processes = library.nvmlDeviceGetComputeRunningProcesses(handle)
        found = next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)
        return None if found is None else int(found)
    except library.NVMLError:
        return None
    finally:
        library.nvmlShutdown()
