"""How a model will be loaded and how many bytes that takes per device, decided from its files before loading.

Device, dtype, quantization, kernels and context come from the model's entry (where it leaves a choice,
`kernels.py` makes it), the engine's limits from the settings. Pure apart from reading the prepared folder. It
knows capacities, not what else is resident.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference_server.checkpoints.facts import ModelFacts, model_facts, read_config
from inference_server.checkpoints.footprint import kv_bytes_per_token, weight_bytes
from inference_server.checkpoints.native import native_shape
from inference_server.checkpoints.native_weights import native_weight_bytes
from inference_server.config.catalog import KvCacheSpec, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ModelLoadFailed
from inference_server.model_manager import workspace
from inference_server.model_manager.devices import HOST
from inference_server.model_manager.embedding_plan import embedding_needs, embeds
from inference_server.model_manager.kernels import choose_execution, needs_native
from inference_server.types import Speculation
from inference_server.worker.protocol import Load

BLOCK_SIZE = 16  # KV tokens are reserved in whole blocks of the engine
DEFAULT_KV_CONTEXTS = (8, 4, 2, 1)  # × max_model_len tokens; the first that fits the device's budget
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The message that loads a model, and what it takes. `bytes_by_device` is what must be reserved."""

    load: Load
    facts: ModelFacts
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    context_bytes: int
    bytes_by_device: Mapping[str, int]

    @property
    def device(self) -> str:
        """Where the weights go: "cpu" or "cuda:N"."""
        return self.load.device

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus output, in tokens."""
        return self.load.max_model_len


def plan_model(
    spec: ModelSpec,
    folder: Path,
    settings: Settings,
    capacity_bytes: Mapping[str, int],
    flags: frozenset[str],
) -> ModelPlan:
    """Plan `spec` onto the first device of its choice whose capacity holds it.

    `capacity_bytes` is what each device could give if everything evictable left it. Where nothing holds the
    model, the plan for the last choice is returned, and it is for the caller to refuse it. `flags` are the
    CPU's instruction sets.

    Raises:
        ModelLoadFailed: the device does not exist.
        FetchFailed, ConfigError: the folder is damaged or contradicts its entry.
    """
    if is_scripted(spec):
        return _scripted_plan(spec, folder, settings)
    plans: list[ModelPlan] = []
    for device in device_choices(spec, capacity_bytes):
        plan = _plan_on(device, spec, folder, settings, capacity_bytes, flags)
        if fits(plan.bytes_by_device, capacity_bytes):
            if plans:
                logger.info("%s does not fit on %s, so it goes to %s", spec.name, plans[0].device, device)
            return plan
        plans.append(plan)
    return plans[-1]


def fits(bytes_by_device: Mapping[str, int], capacity_bytes: Mapping[str, int]) -> bool:
    """Whether every device's part is within its capacity."""
    return all(needed <= capacity_bytes.get(device, 0) for device, needed in bytes_by_device.items())


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


def _plan_on(
    device: str,
    spec: ModelSpec,
    folder: Path,
    settings: Settings,
    capacity_bytes: Mapping[str, int],
    flags: frozenset[str],
) -> ModelPlan:
    if embeds(spec, folder):
        return _embedding_plan(spec, folder, settings, device)
    return _Planner(spec, folder, settings, device, flags).plan(capacity_bytes)


def _embedding_plan(spec: ModelSpec, folder: Path, settings: Settings, device: str) -> ModelPlan:
    needs = embedding_needs(spec, folder, settings, device)
    load = _load_message(
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
    )


class _Planner:
    """Works out one model on one device."""

    def __init__(
        self, spec: ModelSpec, folder: Path, settings: Settings, device: str, flags: frozenset[str]
    ) -> None:
        self._spec, self._folder, self._settings, self._device = spec, folder, settings, device
        self._config = read_config(folder)
        self._facts = model_facts(folder)
        self._execution = choose_execution(spec, folder, self._config, device, flags)
        self._max_model_len = self._longest_context()
        self._kv_bytes_per_token = kv_bytes_per_token(self._config, self._execution.dtype)

    def plan(self, capacity_bytes: Mapping[str, int]) -> ModelPlan:
        plans = [self._with_kv_tokens(tokens) for tokens in self._kv_token_choices(self._spec.kv_cache)]
        chosen = next((plan for plan in plans if fits(plan.bytes_by_device, capacity_bytes)), plans[-1])
        if chosen is not plans[0] and fits(chosen.bytes_by_device, capacity_bytes):
            logger.info(
                "%s: KV cache reduced from %d to %d tokens to fit the memory budget",
                self._spec.name,
                plans[0].load.kv_cache_tokens,
                chosen.load.kv_cache_tokens,
            )
        return chosen

    def _longest_context(self) -> int:
        wanted = self._spec.max_model_len
        limit = self._facts.max_position_embeddings
        if wanted is not None and wanted > limit:
            logger.warning(
                "%s: max_model_len %d is beyond the model's %d; %d is used",
                self._spec.name,
                wanted,
                limit,
                limit,
            )
        return min(wanted or limit, limit)

    def _kv_token_choices(self, kv_cache: KvCacheSpec) -> list[int]:
        if kv_cache.num_tokens is not None:
            return [_whole_blocks(kv_cache.num_tokens)]
        if kv_cache.num_bytes is not None:
            num_tokens = kv_cache.num_bytes // max(1, self._kv_bytes_per_token)
            return [max(BLOCK_SIZE, num_tokens // BLOCK_SIZE * BLOCK_SIZE)]
        return [_whole_blocks(contexts * self._max_model_len) for contexts in DEFAULT_KV_CONTEXTS]

    def _with_kv_tokens(self, kv_cache_tokens: int) -> ModelPlan:
        kv_cache_bytes = (kv_cache_tokens + BLOCK_SIZE) * self._kv_bytes_per_token  # one block is padding
        load = self._load(kv_cache_tokens)
        weights_bytes = self._weight_bytes(load.max_model_len)
        workspace_bytes = self._workspace_bytes(kv_cache_bytes)
        on_gpu = self._device != HOST
        context = self._context_bytes()
        needed = {self._device: weights_bytes + kv_cache_bytes + workspace_bytes + context}
        if on_gpu:
            needed[HOST] = workspace.CUDA_HOST_CONTEXT_BYTES
        return ModelPlan(
            load=load,
            facts=self._facts,
            weights_bytes=weights_bytes,
            kv_cache_bytes=kv_cache_bytes,
            workspace_bytes=workspace_bytes,
            context_bytes=context,
            bytes_by_device=needed,
        )

    def _weight_bytes(self, max_model_len: int) -> int:
        execution = self._execution
        if execution.kernels == "torch":
            return weight_bytes(self._folder, quantization=execution.quantization, dtype=execution.dtype)
        return native_weight_bytes(
            self._config,
            quantization=execution.quantization,
            dtype=execution.dtype,
            block_bits=execution.block_bits,
            max_model_len=max_model_len,
        )

    def _context_bytes(self) -> int:
        if self._device != HOST:
            return workspace.CUDA_DEVICE_CONTEXT_BYTES
        is_native = self._execution.kernels == "native"
        return workspace.NATIVE_CONTEXT_BYTES if is_native else workspace.CPU_CONTEXT_BYTES

    def _workspace_bytes(self, kv_cache_bytes: int) -> int:
        step = workspace.StepShape(
            max_num_batched_tokens=self._settings.max_num_batched_tokens,
            max_num_seqs=_max_sampled_rows(self._spec, self._settings),
            vocab_size=self._facts.vocab_size,
            num_layers=self._facts.num_layers,
            kv_cache_bytes=kv_cache_bytes,
            itemsize=_ITEMSIZE.get(self._execution.dtype, 4),
        )
        if self._execution.kernels == "native":
            return workspace.native_workspace_bytes(native_shape(self._config), step)
        return workspace.workspace_bytes(self._config, step)

    def _load(self, kv_cache_tokens: int) -> Load:
        max_model_len = min(self._max_model_len, kv_cache_tokens)
        if max_model_len < self._max_model_len:
            logger.warning(
                "%s: its KV cache holds %d tokens, so max_model_len is %d and not %d",
                self._spec.name,
                kv_cache_tokens,
                max_model_len,
                self._max_model_len,
            )
        return _load_message(
            self._spec,
            self._folder,
            self._settings,
            device=self._device,
            dtype=self._execution.dtype,
            quantization=self._execution.quantization,
            kernels=self._execution.kernels,
            max_model_len=max_model_len,
            kv_cache_tokens=kv_cache_tokens,
        )


def _scripted_plan(spec: ModelSpec, folder: Path, settings: Settings) -> ModelPlan:
    facts = model_facts(folder)
    wanted = spec.max_model_len or facts.max_position_embeddings
    max_model_len = min(wanted, facts.max_position_embeddings)
    num_tokens = spec.kv_cache.num_tokens or DEFAULT_KV_CONTEXTS[0] * max_model_len
    load = _load_message(
        spec,
        folder,
        settings,
        device=HOST,
        dtype="float32",
        quantization="none",
        max_model_len=min(max_model_len, _whole_blocks(num_tokens)),
        kv_cache_tokens=_whole_blocks(num_tokens),
        scripted=True,
    )
    context = workspace.SCRIPTED_CONTEXT_BYTES
    return ModelPlan(
        load=load,
        facts=facts,
        weights_bytes=0,
        kv_cache_bytes=0,
        workspace_bytes=0,
        context_bytes=context,
        bytes_by_device={HOST: context},
    )


def _load_message(
    spec: ModelSpec,
    folder: Path,
    settings: Settings,
    *,
    device: str,
    dtype: str,
    quantization: str,
    max_model_len: int,
    kv_cache_tokens: int,
    kernels: str = "torch",
    scripted: bool = False,
) -> Load:
    return Load(
        model=spec.name,
        folder=str(folder),
        device=device,
        dtype=dtype,
        quantization=quantization,
        kernels=kernels,
        max_model_len=max_model_len,
        kv_cache_tokens=kv_cache_tokens,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        num_threads=settings.num_threads,
        scripted=scripted,
        trust_remote_code=spec.trust_remote_code,
        enable_prefix_caching=settings.enable_prefix_caching,
        prefill_slowdown=settings.prefill_slowdown,
        speculation=_speculation(spec),
    )


def _speculation(spec: ModelSpec) -> Speculation | None:
    if spec.speculation == "none":
        return None
    return Speculation(max_draft_tokens=spec.max_draft_tokens, max_drafting_seqs=spec.max_drafting_seqs)


def _max_sampled_rows(spec: ModelSpec, settings: Settings) -> int:
    """Rows of logits in one step: one per sequence, or one per draft and one more."""
    found = _speculation(spec)
    num_drafting = 0 if found is None else min(found.max_drafting_seqs, settings.max_num_seqs)
    return max(settings.max_num_seqs, num_drafting * (1 + spec.max_draft_tokens))


def _whole_blocks(num_tokens: int) -> int:
    return max(1, -(-num_tokens // BLOCK_SIZE)) * BLOCK_SIZE
