"""One model on one device: dtype, kernels and KV cache as its entry and the settings ask, and all the bytes.

Weights and KV cache are exact; workspace and context are what an earlier worker was seen to need, or else
estimates. Which device it should be, and what else is resident, is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from inference_server.checkpoints.facts import model_facts, read_config
from inference_server.checkpoints.footprint import kv_bytes_per_token, stored_weight_bytes, weight_bytes
from inference_server.checkpoints.native import native_shape
from inference_server.checkpoints.native_weights import native_weight_bytes
from inference_server.config.catalog import KvCacheSpec, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError
from inference_server.model_manager import workspace
from inference_server.model_manager.devices import HOST
from inference_server.model_manager.kernels import choose_execution, smaller_quantizations
from inference_server.model_manager.load_message import load_message, max_sampled_rows
from inference_server.model_manager.model_plan import ModelPlan, fits
from inference_server.model_manager.overheads import OverheadStore, overhead_key
from inference_server.types import BLOCK_SIZE, MeasuredOverhead
from inference_server.worker.protocol import Load

DEFAULT_KV_CONTEXTS = (8, 4, 2, 1)  # × max_model_len tokens; the first that fits the device's budget
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
logger = logging.getLogger(__name__)


class Placement:
    """Works out one model on one device."""

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path,
        settings: Settings,
        device: str,
        flags: frozenset[str],
        overheads: OverheadStore | None = None,
    ) -> None:
        """Raises like `choose_execution`."""
        self._spec, self._folder, self._settings, self._device = spec, folder, settings, device
        self._flags, self._overheads = flags, overheads
        self._config = read_config(folder)
        self._facts = model_facts(folder)
        self._execution = choose_execution(spec, folder, self._config, device, flags)
        self._max_model_len = self._longest_context()
        self._kv_bytes_per_token = kv_bytes_per_token(self._config, self._execution.dtype)

    def plan(self, capacity_bytes: Mapping[str, int]) -> ModelPlan:
        """The plan with the largest KV cache that fits, or with the smallest if none does."""
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

    def smaller(self) -> Iterator[Placement]:
        """The same with quantizations that take fewer bytes, if the entry leaves that open; best first."""
        if self._spec.quantization != "auto":
            return
        fewest_bytes = self._weight_bytes(self._max_model_len)
        for quantization in smaller_quantizations(self._execution):
            spec = msgspec.structs.replace(self._spec, quantization=quantization)
            try:
                other = Placement(
                    spec, self._folder, self._settings, self._device, self._flags, self._overheads
                )
            except ConfigError:
                continue  # this model cannot be had so
            if (num_bytes := other._weight_bytes(other._max_model_len)) < fewest_bytes:
                fewest_bytes = num_bytes
                yield other

    # ------------------------------------------------------------ lengths

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
            return [whole_blocks(kv_cache.num_tokens)]
        if kv_cache.num_bytes is not None:
            num_tokens = kv_cache.num_bytes // max(1, self._kv_bytes_per_token)
            return [max(BLOCK_SIZE, num_tokens // BLOCK_SIZE * BLOCK_SIZE)]
        return [whole_blocks(contexts * self._max_model_len) for contexts in DEFAULT_KV_CONTEXTS]

    # ------------------------------------------------------------ bytes

    def _with_kv_tokens(self, kv_cache_tokens: int) -> ModelPlan:
        kv_cache_bytes = (kv_cache_tokens + self._num_padding_tokens()) * self._kv_bytes_per_token
        load = self._load(kv_cache_tokens)
        measured = None if self._overheads is None else self._overheads.find(overhead_key(load))
        weights = self._weight_bytes(load.max_model_len)
        work = self._workspace_bytes(kv_cache_bytes, measured)
        context = self._context_bytes(measured)
        needed = {self._device: weights + kv_cache_bytes + work + context}
        asleep = {self._device: context}
        if self._device != HOST:
            on_host = measured.host_bytes if measured is not None else workspace.CUDA_HOST_CONTEXT_BYTES
            needed[HOST] = on_host
            asleep[HOST] = on_host + weights
        wants_measure = self._overheads is not None and measured is None
        return ModelPlan(
            load=msgspec.structs.replace(load, measures_overhead=wants_measure),
            facts=self._facts,
            weights_bytes=weights,
            kv_cache_bytes=kv_cache_bytes,
            workspace_bytes=work,
            context_bytes=context,
            bytes_by_device=needed,
            sleeping_bytes_by_device=asleep,
            is_measured=measured is not None,
            why=self._execution.why,
        )

    def _num_padding_tokens(self) -> int:
        """Torch's block tables are padded with a block of their own."""
        return 0 if self._execution.kernels == "native" else BLOCK_SIZE

    def _weight_bytes(self, max_model_len: int) -> int:
        execution = self._execution
        if execution.is_stored:
            return stored_weight_bytes(self._folder, dtype=execution.dtype, unpacks=execution.unpacks)
        if execution.kernels == "torch":
            return weight_bytes(self._folder, quantization=execution.quantization, dtype=execution.dtype)
        return native_weight_bytes(
            self._config,
            quantization=execution.quantization,
            dtype=execution.dtype,
            block_bits=execution.block_bits,
            max_model_len=max_model_len,
        )

    def _context_bytes(self, measured: MeasuredOverhead | None) -> int:
        if measured is not None and measured.context_bytes is not None:
            return measured.context_bytes
        if self._device != HOST:
            return workspace.CUDA_DEVICE_CONTEXT_BYTES
        is_native = self._execution.kernels == "native"
        return workspace.NATIVE_CONTEXT_BYTES if is_native else workspace.CPU_CONTEXT_BYTES

    def _workspace_bytes(self, kv_cache_bytes: int, measured: MeasuredOverhead | None) -> int:
        step = workspace.StepShape(
            max_num_batched_tokens=self._settings.max_num_batched_tokens,
            max_num_seqs=max_sampled_rows(self._spec, self._settings),
            vocab_size=self._facts.vocab_size,
            num_layers=self._facts.num_layers,
            kv_cache_bytes=kv_cache_bytes,
            itemsize=_ITEMSIZE.get(self._execution.dtype, 4),
        )
        is_native = self._execution.kernels == "native"
        if measured is not None:
            # What was measured read short sequences; torch copies what it reads of long ones.
            return measured.workspace_bytes + (0 if is_native else workspace.gathered_bytes(step))
        if is_native:
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
        return load_message(
            self._spec,
            self._folder,
            self._settings,
            device=self._device,
            dtype=self._execution.dtype,
            quantization=self._execution.quantization,
            kernels=self._execution.kernels,
            max_model_len=max_model_len,
            kv_cache_tokens=kv_cache_tokens,
            unpacks=self._execution.unpacks,
        )


def whole_blocks(num_tokens: int) -> int:
    """The next multiple of a block."""
    return max(1, -(-num_tokens // BLOCK_SIZE)) * BLOCK_SIZE
