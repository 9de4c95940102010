"""One request inside the engine: its tokens, how far they are computed, and its KV blocks.

State, owned by the scheduler:  WAITING → RUNNING → FINISHED,  RUNNING → WAITING (preempted),
WAITING → FINISHED (aborted).
"""

from __future__ import annotations

import enum

from inference_server.types import FinishReason, GenerationRequest, SamplingParams


class SequenceStatus(enum.Enum):
    """See the module's docstring for the transitions."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Mutable; everyone but the scheduler only reads."""

    __slots__ = (
        "arrival",
        "block_hashes",
        "block_ids",
        "finish_reason",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_registered_blocks",
        "output_token_ids",
        "request",
        "status",
        "token_ids",
    )

    def __init__(self, request: GenerationRequest, arrival: int) -> None:
        self.request = request
        self.arrival = arrival
        self.token_ids = list(request.prompt_token_ids)
        self.output_token_ids: list[int] = []
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []
        self.num_registered_blocks = 0
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_token_ids)
