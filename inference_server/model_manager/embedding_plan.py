"""How an embedding model will be loaded and what it takes, worked out from its files. Pure apart from that.

It has no KV cache: its memory is its weights and the tensors of one step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference_server.checkpoints.facts import config_dtype, first_int, model_facts, read_config, text_config
from inference_server.checkpoints.footprint import weight_bytes
from inference_server.checkpoints.headers import read_header
from inference_server.checkpoints.sentence import (
    SentenceConfig,
    is_sentence_folder,
    read_sentence_config,
    usable_positions,
)
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError
from inference_server.model_manager import workspace
from inference_server.model_manager.devices import HOST
from inference_server.model_manager.load_message import load_message
from inference_server.model_manager.model_plan import ModelPlan, fits

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
_HIDDEN_COPIES = (
    10  # residual, normed, query, key, value, attended, output, their float32 copy, pooled, spare
)
_MLP_COPIES = 3  # gate, up or its activation, product
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbeddingNeeds:
    """What an embedding model's load message and reservation are made of. Bytes are those on its device."""

    dtype: str
    max_model_len: int
    max_num_batched_tokens: int
    weights_bytes: int
    workspace_bytes: int


def embeds(spec: ModelSpec, folder: Path) -> bool:
    """Whether this model makes embeddings: its entry says so, or its folder does and the entry does not."""
    return spec.task == "embed" or (spec.task == "auto" and is_sentence_folder(folder))


def embedding_plan(
    spec: ModelSpec,
    folder: Path,
    settings: Settings,
    devices: Sequence[str],
    capacity_bytes: Mapping[str, int],
) -> ModelPlan:
    """The plan for the first of `devices` whose capacity holds the model, or else for the last.

    Raises:
        ConfigError, FetchFailed: as `embedding_needs`.
    """
    plans = [_plan_on(device, spec, folder, settings) for device in devices]
    return next((plan for plan in plans if fits(plan.bytes_by_device, capacity_bytes)), plans[-1])


def _plan_on(device: str, spec: ModelSpec, folder: Path, settings: Settings) -> ModelPlan:
    needs = embedding_needs(spec, folder, settings, device)
    load = load_message(
        spec,
        folder,
        settings,
        device=device,
        dtype=needs.dtype,
        quantization="none",
        max_model_len=needs.max_model_len,
        kv_cache_tokens=0,
    )
    on_gpu = device != HOST
    context = workspace.CUDA_DEVICE_CONTEXT_BYTES if on_gpu else workspace.CPU_CONTEXT_BYTES
    needed = {device: needs.weights_bytes + needs.workspace_bytes + context}
    if on_gpu:
        needed[HOST] = workspace.CUDA_HOST_CONTEXT_BYTES
    return ModelPlan(
        load=msgspec.structs.replace(load, task="embed", max_num_batched_tokens=needs.max_num_batched_tokens),
        facts=model_facts(folder),
        weights_bytes=needs.weights_bytes,
        kv_cache_bytes=0,
        workspace_bytes=needs.workspace_bytes,
        context_bytes=context,
        bytes_by_device=needed,
        why="embedding models are not quantized",
    )


def embedding_needs(spec: ModelSpec, folder: Path, settings: Settings, device: str) -> EmbeddingNeeds:
    """Work out one model on one device.

    Raises:
        ConfigError: the entry or the folder asks for what embedding models do not support.
        FetchFailed: the folder is damaged.
    """
    _refuse_unsupported(spec)
    config = read_config(folder)
    sentence = read_sentence_config(folder)
    dtype = _dtype(spec.dtype, config_dtype(config), device)
    positions = usable_positions(config, model_facts(folder).max_position_embeddings)
    max_model_len = _max_model_len(spec, sentence, positions)
    step_tokens = max(max_model_len, settings.max_num_batched_tokens)  # an input is never cut
    text = text_config(config)
    hidden = first_int(text, ("hidden_size", "d_model", "dim")) or 0
    mlp = first_int(text, ("intermediate_size", "hidden_dim", "n_inner")) or 4 * hidden
    per_token = _HIDDEN_COPIES * hidden + _MLP_COPIES * mlp
    return EmbeddingNeeds(
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_batched_tokens=step_tokens,
        weights_bytes=weight_bytes(folder, quantization="none", dtype=dtype) + _dense_bytes(sentence),
        workspace_bytes=step_tokens * per_token * _ITEMSIZE[dtype],
    )


def _refuse_unsupported(spec: ModelSpec) -> None:
    if spec.quantization not in ("auto", "none"):
        raise ConfigError(
            f"{spec.name!r} wants quantization {spec.quantization!r}; embedding models are not quantized: "
            "use auto or none",
            param="quantization",
        )
    if spec.kernels == "native":
        raise ConfigError(
            f"{spec.name!r} wants the native kernels; embedding models are computed by torch: use auto",
            param="kernels",
        )


def _dtype(wanted: str, stored: str | None, device: str) -> str:
    """ "auto": the checkpoint's on a GPU; float32 on a CPU, where it is the faster one (measured: 1.7 x)."""
    if wanted != "auto":
        return wanted
    return stored if device != HOST and stored in _ITEMSIZE else "float32"


def _max_model_len(spec: ModelSpec, sentence: SentenceConfig, positions: int) -> int:
    """The entry's wish, or the length the model was made for, but no more than it has positions for."""
    wanted = spec.max_model_len or sentence.max_seq_length or positions
    if wanted > positions:
        logger.warning(
            "%s: max_model_len %d is beyond the model's %d; %d is used",
            spec.name, wanted, positions, positions,
        )  # fmt: skip
    return min(wanted, positions)


def _dense_bytes(sentence: SentenceConfig) -> int:
    """Dense layers are kept in float32."""
    headers = (read_header(module.folder / "model.safetensors") for module in sentence.dense)
    return sum(4 * tensor.num_elements for header in headers for tensor in header.values())
