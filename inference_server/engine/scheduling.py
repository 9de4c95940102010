"""The scheduler that an engine's specification asks for, whatever computes its steps."""

from __future__ import annotations

from collections.abc import Iterable

from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.scheduler import Scheduler
from inference_server.types import BLOCK_SIZE, EngineSpec


def num_blocks(spec: EngineSpec) -> int:
    """KV blocks that hold at least `kv_cache_tokens` tokens."""
    return max(1, -(-spec.kv_cache_tokens // BLOCK_SIZE))


def build_scheduler(spec: EngineSpec, eos_token_ids: Iterable[int]) -> Scheduler:
    """A scheduler with the specification's limits."""
    return Scheduler(
        SchedulerConfig(
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_model_len=spec.max_model_len,
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks(spec),
            enable_prefix_caching=spec.enable_prefix_caching,
            eos_token_ids=frozenset(eos_token_ids),
            prefill_slowdown=spec.prefill_slowdown,
            speculation=spec.speculation,
        )
    )
