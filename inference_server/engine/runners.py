"""Which runner computes a loaded model's steps: the CUDA one where it can, else the general one."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Sequence as Seq

from inference_server.execution.admission import LayerFacts
from inference_server.execution.attention.binding import StepSlot
from inference_server.execution.attention.sdpa import SdpaBackend
from inference_server.execution.cuda_runner import CudaRunner
from inference_server.execution.cuda_setup import set_up_cuda
from inference_server.execution.inputs import StepInput
from inference_server.execution.kv_cache import KVCache
from inference_server.execution.runner import Runner, bind_layers
from inference_server.execution.sampler import Sampler
from inference_server.loading.loader import LoadedModel
from inference_server.types import EngineSpec


def build_runner(
    loaded: LoadedModel, layers: Seq[LayerFacts], cache: KVCache, spec: EngineSpec
) -> tuple[Runner | CudaRunner, str]:
    """The runner, and in a few words how it attends, for the log.

    Raises:
        torch.OutOfMemoryError: the device is too small.
    """
    salt = secrets.token_bytes(16)
    if loaded.device.type == "cuda":
        runner = set_up_cuda(
            loaded,
            layers,
            cache,
            max_num_seqs=spec.max_num_seqs,
            max_model_len=spec.max_model_len,
            salt=salt,
        )
        if runner is not None:
            return runner, "triton, decodes from graphs" if runner.graphs is not None else "triton"
    slot: StepSlot[StepInput] = StepSlot()
    bind_layers(layers, cache, SdpaBackend(), slot)
    general = Runner(
        loaded.model,
        cache=cache,
        slot=slot,
        sampler=Sampler(loaded.eos_token_ids, salt),
        device=loaded.device,
        selects_rows="logits_to_keep" in inspect.signature(loaded.model.forward).parameters,
    )
    return general, "sdpa"
