"""From a prepared folder to a model on its device, ready for flat ragged batches.

Knows transformers' loader; knows neither the scheduler nor the KV cache. Admission (whether the model may
be served at all) is `execution/admission.py`'s matter.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference_server.checkpoints.facts import read_config
from inference_server.checkpoints.inspection import inspect_folder
from inference_server.checkpoints.stored import stored_scheme
from inference_server.errors import ModelLoadFailed
from inference_server.loading.completeness import require_all_weights
from inference_server.loading.quantization import quantization_config, unpacking_config
from inference_server.loading.quantized import store_for
from inference_server.loading.quiet import quiet_libraries
from inference_server.loading.rope import freeze_batch_dependent_rope

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, its text configuration, and where it lives."""

    model: nn.Module
    config: Any
    device: torch.device
    dtype: torch.dtype
    weights_bytes: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int


def load_model(
    folder: Path,
    *,
    device: str,
    dtype: str,
    quantization: str,
    max_model_len: int,
    attention: str,
    trust_remote_code: bool = False,
    unpacks: bool = False,
    cache_dir: Path | None = None,
) -> LoadedModel:
    """Load `folder` onto `device`. `attention` is the name of a registered attention interface.

    `unpacks`: the checkpoint comes quantized as `quantization`, and its weights are to become plain ones.
    Weights that are quantized for this load are kept in `cache_dir`, and read from there by the next.

    Raises:
        ModelLoadFailed: the folder is unsafe, damaged or lacks weights, or its architecture cannot be served.
    """
    from transformers import AutoModelForCausalLM

    inspect_folder(folder, allow_pickle=False, trust_remote_code=trust_remote_code)
    quiet_libraries()
    torch_dtype = DTYPES[dtype]
    target = torch.device(device)
    options = _quantization_options(folder, quantization, torch_dtype, unpacks)
    store = None
    if cache_dir is not None and options and not trust_remote_code:
        store = store_for(cache_dir, folder, quantization=quantization, dtype=dtype, device=device)
    if is_filled := store is not None and store.is_filled:
        options = {}  # the saved checkpoint says itself how it is quantized
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            store.path if store is not None and is_filled else folder,
            dtype=torch_dtype,
            attn_implementation=attention,
            device_map={"": target},
            **options,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except KeyError as error:
        if error.args != (attention,):
            raise
        # Some older families look the name up in a table of their own.
        raise _no_attention_interface("the model's architecture") from error
    require_all_weights(model, report)
    if store is not None and not is_filled:
        store.fill(model, storage_bytes(model))
    if unpacks:
        model.to(torch_dtype)  # some schemes unpack to bfloat16, whatever was asked for
    model.eval()
    if not model._can_set_attn_implementation():
        raise _no_attention_interface(f"the architecture {type(model).__name__}")
    freeze_batch_dependent_rope(model, max_model_len)
    config = model.config.get_text_config()
    return LoadedModel(
        model=model,
        config=config,
        device=target,
        dtype=torch_dtype,
        weights_bytes=storage_bytes(model),
        eos_token_ids=_eos_token_ids(model),
        vocab_size=int(config.vocab_size),
    )


def _quantization_options(
    folder: Path, quantization: str, dtype: torch.dtype, unpacks: bool
) -> dict[str, Any]:
    """Nothing for weights that stay as stored: `None`, too, would hide from transformers how they are."""
    if unpacks:
        return {"quantization_config": unpacking_config(quantization)}
    if stored_scheme(read_config(folder)) is not None:
        return {}
    chosen = quantization_config(quantization, dtype)
    return {} if chosen is None else {"quantization_config": chosen}


def _no_attention_interface(subject: str) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"{subject} does not call transformers' attention interface, "
        "so its requests could not be kept apart in one batch; it cannot be served"
    )


def storages(model: nn.Module) -> list[torch.UntypedStorage]:
    """Every distinct storage of parameters, buffers and quantization states."""
    found = (tensor.untyped_storage() for tensor in _tensors(model))
    return list({storage.data_ptr(): storage for storage in found}.values())


def storage_bytes(model: nn.Module) -> int:
    """Bytes of these storages."""
    return sum(storage.nbytes() for storage in storages(model))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    found: list[torch.Tensor] = [*model.buffers()]
    for parameter in model.parameters():
        found.append(parameter.data)
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # a double-quantized state holds another one
            found += [t for t in (state.absmax, state.code, state.offset) if isinstance(t, torch.Tensor)]
            state = getattr(state, "state2", None)
        found += [t for t in (getattr(parameter, name, None) for name in ("CB", "SCB")) if t is not None]
    return found


def _eos_token_ids(model: Any) -> tuple[int, ...]:
    """End-of-sequence ids of the generation config, or else of the model's config."""
    for source in (getattr(model, "generation_config", None), model.config.get_text_config(), model.config):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)
    return ()
