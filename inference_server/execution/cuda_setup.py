"""From a loaded model on a GPU to the runner of its steps: fusion, backend, check, warm-up, graphs.

Whatever does not work as it should is found here, logged, and done without: the paged kernels (None is
returned, and the general runner takes over), flash attention, or the graphs.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence as Seq

import torch

from inference_server.execution.admission import LayerFacts
from inference_server.execution.attention.binding import StepSlot
from inference_server.execution.block_tables import BlockTables
from inference_server.execution.cuda_graphs import (
    Capture,
    CudaCapture,
    DecodeGraphs,
    capture_decodes,
    ladder,
    why_not_capturable,
)
from inference_server.execution.cuda_runner import CudaRunner
from inference_server.execution.kv_cache import KVCache
from inference_server.execution.paged_step import PagedStep
from inference_server.execution.runner import bind_layers
from inference_server.execution.sampler import Sampler
from inference_server.loading.loader import LoadedModel
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.sequence import Sequence
from inference_server.types import GenerationRequest, SamplingParams

# Largest accepted difference of the paged kernels from plain attention, in standard deviations of the values.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
_WARM_UP_TOKENS = (300, 20, 1)  # a cold chunk for flash attention, a chunk for our kernel, a decode
logger = logging.getLogger(__name__)


def prepare_for_cuda(loaded: LoadedModel) -> None:
    """Fuse what can be fused; to be called before the model's self-test, which then tests the result."""
    try:
        from inference_server.execution.fusion import fuse
    except ImportError as error:
        logger.warning("nothing is fused: Triton cannot be imported (%s)", error)
        return
    try:
        fuse(loaded.model, loaded.dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's failures are of many kinds; what is fused so far is right
        logger.warning("no more is fused: a kernel failed", exc_info=error)


def set_up_cuda(
    loaded: LoadedModel,
    layers: Seq[LayerFacts],
    cache: KVCache,
    *,
    max_num_seqs: int,
    max_model_len: int,
    salt: bytes,
    capture: Capture | None = None,
) -> CudaRunner | None:
    """A runner over `cache`, warm and with its decode steps captured; None where Triton is of no use.

    `salt`: see `Sampler`. `capture` is how steps are captured: as CUDA graphs, unless a test says otherwise.

    Raises:
        torch.OutOfMemoryError: the device is too small for what is to be captured.
    """
    try:
        from inference_server.execution.attention.cuda import CudaBackend, check_backend, cuda_backend
        from inference_server.execution.attention.varlen import MIN_TOKENS
        from inference_server.execution.nucleus import keep_top_p_on_device
    except ImportError as error:
        logger.warning("steps run on gathered blocks: Triton cannot be imported (%s)", error)
        return None
    backend: CudaBackend = cuda_backend(loaded.device)
    try:
        difference = check_backend(
            backend,
            [layer.shape for layer in layers],
            num_heads=int(loaded.config.num_attention_heads),
            block_size=cache.block_size,
            dtype=loaded.dtype,
            device=loaded.device,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's failures are of many kinds
        logger.warning("steps run on gathered blocks: the paged kernels failed", exc_info=error)
        return None
    if not difference <= TOLERANCE[loaded.dtype]:
        logger.warning("steps run on gathered blocks: the paged kernels are off by %.3g", difference)
        return None
    slot: StepSlot[PagedStep] = StepSlot()
    bind_layers(layers, cache, backend, slot)
    width = -(-max_model_len // cache.block_size) + 1
    tables = BlockTables(max_rows=max_num_seqs, width=width, device=loaded.device)
    runner = CudaRunner(
        loaded.model,
        slot=slot,
        sampler=Sampler(loaded.eos_token_ids, salt, keep_top_p_on_device),
        tables=tables,
        block_size=cache.block_size,
        vocab_size=loaded.vocab_size,
        device=loaded.device,
        selects_rows="logits_to_keep" in inspect.signature(loaded.model.forward).parameters,
        cold_from=MIN_TOKENS if backend.has_varlen else None,
    )
    warm_up(runner, cache, max_model_len)
    runner.capture_with(lambda: _captured(runner, loaded, cache, tables, max_num_seqs, capture))
    return runner


def warm_up(runner: CudaRunner, cache: KVCache, max_model_len: int) -> None:
    """A step of each kind, so that no request waits for a compiler. Writes to the cache's first blocks."""
    sampling = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9, top_k=50, min_p=0.01)
    room = min(max_model_len, cache.num_blocks * cache.block_size)
    start = 0
    for num_tokens in _WARM_UP_TOKENS:
        end = min(start + num_tokens, room)
        if end == start:
            return
        request = GenerationRequest(
            request_id="warm-up", prompt_token_ids=tuple(n % 2 for n in range(end)), sampling=sampling
        )
        sequence = Sequence(request, arrival=0, max_num_tokens=end + 1)
        sequence.block_ids = list(range(-(-end // cache.block_size)))
        item = ScheduledSequence(sequence, start, end - start, True)
        runner.launch(Batch(scheduled=(item,), preempted=())).tokens()
        start = end


def _captured(
    runner: CudaRunner,
    loaded: LoadedModel,
    cache: KVCache,
    tables: BlockTables,
    max_num_seqs: int,
    capture: Capture | None,
) -> DecodeGraphs | None:
    reason = why_not_capturable(loaded.model, loaded.config)
    if reason is not None:
        logger.warning("decode steps run eagerly: %s", reason)
        return None
    return capture_decodes(
        ladder(max_num_seqs),
        forward=runner.forward,
        block_table=tables.device,
        vocab_size=loaded.vocab_size,
        num_slots=cache.num_blocks * cache.block_size,
        capture=capture or CudaCapture(),
    )
