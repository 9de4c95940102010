"""The caps and options of one scheduler, as a frozen value. It knows no state."""

from __future__ import annotations

import msgspec

from inference_server.scheduling.prefix_cache import MAX_TOKEN_ID
from inference_server.types import Speculation


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Caps of one scheduler. `num_blocks` blocks of `block_size` tokens are the whole KV cache.

    `vocab_size` lets `add` refuse token ids that the model does not have: one of them in a batch would fail
    the step for all. Prompts with more than `long_prompt_tokens` to compute are paced by `prefill_slowdown`,
    see `pacing.py`; 0 is off. `speculation` None is off.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True
    eos_token_ids: frozenset[int] = frozenset()
    vocab_size: int = MAX_TOKEN_ID + 1
    prefill_slowdown: float = 0.0
    long_prompt_tokens: int = 512
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.prefill_slowdown < 0:
            raise ValueError("prefill_slowdown must be at least 0")

    @property
    def max_draft_tokens(self) -> int:
        """Longest guess; 0 without speculation."""
        return 0 if self.speculation is None else self.speculation.max_draft_tokens
