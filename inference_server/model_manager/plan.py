"""How a model will be loaded and how many bytes that takes per device, decided from its files before loading.

Which device and which quantization is the matter here; what one choice takes is `placement.py`'s. It knows
capacities, not what else is resident.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from inference_server.checkpoints.facts import model_facts
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.config.units import format_bytes
from inference_server.errors import ConfigError, ModelLoadFailed
from inference_server.model_manager import workspace
from inference_server.model_manager.devices import HOST
from inference_server.model_manager.embedding_plan import embedding_plan, embeds
from inference_server.model_manager.kernels import needs_native
from inference_server.model_manager.load_message import load_message
from inference_server.model_manager.model_plan import ModelPlan, fits
from inference_server.model_manager.overheads import OverheadStore
from inference_server.model_manager.placement import DEFAULT_KV_CONTEXTS, Placement, whole_blocks

__all__ = ["ModelPlan", "device_choices", "fits", "is_scripted", "plan_model"]
logger = logging.getLogger(__name__)


def plan_model(
    spec: ModelSpec,
    folder: Path,
    settings: Settings,
    capacity_bytes: Mapping[str, int],
    flags: frozenset[str],
    overheads: OverheadStore | None = None,
) -> ModelPlan:
    """Plan `spec` onto the first device of its choice whose capacity holds it.

    `capacity_bytes` is what each device could give if everything evictable left it. Where the entry leaves
    the quantization open and the weights do not fit, smaller ones are tried before the next kind of device.
    Where nothing holds the model, the plan for the last choice is returned, and it is for the caller to
    refuse it. `flags` are the CPU's instruction sets, `overheads` what workers were seen to need.

    Raises:
        ModelLoadFailed: the device does not exist.
        FetchFailed, ConfigError: the folder is damaged or contradicts its entry, or cannot run here.
    """
    if is_scripted(spec):
        return _scripted_plan(spec, folder, settings)
    if embeds(spec, folder):
        choices = device_choices(spec, capacity_bytes)
        return embedding_plan(spec, folder, settings, choices, capacity_bytes)
    plans: list[ModelPlan] = []
    refusal: ConfigError | None = None
    for devices in _by_kind(device_choices(spec, capacity_bytes)):
        placements = []
        for device in devices:
            try:
                placements.append(Placement(spec, folder, settings, device, flags, overheads))
            except ConfigError as error:
                refusal = refusal or error
        for placement in _attempts(placements):
            plan = placement.plan(capacity_bytes)
            if fits(plan.bytes_by_device, capacity_bytes):
                return _detour(spec.name, plans, plan, capacity_bytes)
            plans.append(plan)
    if not plans and refusal is not None:
        raise refusal
    return plans[-1]


def is_scripted(spec: ModelSpec) -> bool:
    """Whether this is the built-in model without weights."""
    return spec.source == "scripted" or spec.source.startswith("scripted:")


def device_choices(spec: ModelSpec, known: Mapping[str, int]) -> tuple[str, ...]:
    """Devices to try, the best first. GPUs with more capacity come first; "auto" falls back to the CPU.

    What only the native CPU kernels do is never tried on a GPU that "auto" could have chosen.

    Raises:
        ModelLoadFailed: none of them exists here.
    """
    wanted = spec.device
    gpus = sorted((name for name in known if name != HOST), key=lambda name: (-known[name], name))
    if wanted == "auto":
        return (HOST,) if needs_native(spec) else (*gpus, HOST)
    chosen = tuple(gpus) if wanted == "cuda" else (wanted,)
    if not chosen or any(name not in known for name in chosen):
        raise ModelLoadFailed(f"{spec.name!r} wants device {wanted!r}, which is not here", param="device")
    return chosen


def _by_kind(devices: Sequence[str]) -> list[list[str]]:
    """GPUs, then the host."""
    groups = ([name for name in devices if name != HOST], [name for name in devices if name == HOST])
    return [group for group in groups if group]


def _attempts(placements: Sequence[Placement]) -> Iterator[Placement]:
    """Each device as the entry asks for it, then each with the next smaller quantization, and so on."""
    yield from placements
    for level in itertools.zip_longest(*(placement.smaller() for placement in placements)):
        yield from (placement for placement in level if placement is not None)


def _detour(
    name: str, tried: Sequence[ModelPlan], plan: ModelPlan, capacity_bytes: Mapping[str, int]
) -> ModelPlan:
    """The plan, which says so if it is not the first choice."""
    for other in tried:
        logger.info(
            "%s does not fit on %s with quantization %s: %s needed, %s can be had",
            name,
            other.device,
            other.load.quantization,
            format_bytes(other.bytes_by_device[other.device]),
            format_bytes(max(0, capacity_bytes.get(other.device, 0))),
        )
    if not tried:
        return plan
    needed = format_bytes(plan.bytes_by_device[plan.device])
    logger.info("%s goes to %s with quantization %s: %s", name, plan.device, plan.load.quantization, needed)
    first = tried[0]
    why = (
        f"with {first.load.quantization} it needs {format_bytes(first.bytes_by_device[first.device])} on "
        f"{first.device}, where {format_bytes(max(0, capacity_bytes.get(first.device, 0)))} can be had"
    )
    return dataclasses.replace(plan, why=why)


def _scripted_plan(spec: ModelSpec, folder: Path, settings: Settings) -> ModelPlan:
    facts = model_facts(folder)
    wanted = spec.max_model_len or facts.max_position_embeddings
    max_model_len = min(wanted, facts.max_position_embeddings)
    num_tokens = whole_blocks(spec.kv_cache.num_tokens or DEFAULT_KV_CONTEXTS[0] * max_model_len)
    load = load_message(
        spec,
        folder,
        settings,
        device=HOST,
        dtype="float32",
        quantization="none",
        max_model_len=min(max_model_len, num_tokens),
        kv_cache_tokens=num_tokens,
        scripted=True,
    )
    context = workspace.SCRIPTED_CONTEXT_BYTES
    return ModelPlan(
        load=msgspec.structs.replace(load, task="embed" if spec.task == "embed" else "generate"),
        facts=facts,
        weights_bytes=0,
        kv_cache_bytes=0,
        workspace_bytes=0,
        context_bytes=context,
        bytes_by_device={HOST: context},
        sleeping_bytes_by_device={HOST: context},
        why="it has no weights",
    )
