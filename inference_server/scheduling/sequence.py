"""One request inside the engine: its tokens, how far they are computed, and the blocks that hold them.

Owner: the scheduler, the only one that mutates it. It knows neither the block pool nor other sequences.
"""

from __future__ import annotations

import enum

from inference_server.errors import InternalError
from inference_server.scheduling.constraint import Constraint
from inference_server.scheduling.speculation import Drafter
from inference_server.types import FinishReason, GenerationRequest, SamplingParams


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life.

    | from     | to       | by      | blocks                                         |
    |----------|----------|---------|------------------------------------------------|
    | WAITING  | RUNNING  | admit   | one for each `block_size` tokens that it has   |
    | WAITING  | FINISHED | finish  | none held, none freed (an abort)               |
    | RUNNING  | WAITING  | preempt | all given up; everything is computed again     |
    | RUNNING  | FINISHED | finish  | given up once no step in flight writes to them |

    Only a sequence that is in no step in flight is preempted.
    """

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A prompt that grows by one token each time all of its tokens are computed.

    `num_computed_tokens` counts the leading tokens whose keys and values lie in `block_ids`; it lags behind
    `num_tokens`, and steps let it catch up. `num_cached_tokens` is what the prefix cache gave at the first
    admission. `block_keys` are the prefix-cache keys of its leading full blocks, made as they are needed; as
    tokens are only ever appended, a key stays right for life, also over a preemption.

    A step in flight is scheduled and not committed. `num_scheduled_tokens` is where `num_computed_tokens`
    will be if all of them end well; `num_awaited_tokens` is how many tokens they may sample for it.

    Scores (log-probabilities) are wanted of the prompt's tokens from `num_scored_tokens` on; a step that
    computes a token gives the score of the next.
    """

    __slots__ = (
        "arrival",
        "awaited_key",
        "block_ids",
        "block_keys",
        "constraint",
        "drafter",
        "finish_reason",
        "is_paced",
        "is_plain",
        "max_num_tokens",
        "num_announced_blocks",
        "num_awaited_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_published_blocks",
        "num_scheduled_tokens",
        "num_scored_tokens",
        "num_steps_in_flight",
        "output_token_ids",
        "rank",
        "request",
        "request_id",
        "sampling",
        "seniority",
        "status",
        "token_ids",
        "was_admitted",
    )

    def __init__(
        self,
        request: GenerationRequest,
        *,
        arrival: int,
        max_num_tokens: int,
        constraint: Constraint | None = None,
    ) -> None:
        """`max_num_tokens`: prompt and output together end here. `arrival` is unique and counts up."""
        self.request = request
        self.request_id: str = request.request_id
        self.sampling: SamplingParams = request.sampling
        self.arrival = arrival
        self.rank = (request.priority, arrival)  # lower starts first, among those of its tenant
        # Lower keeps its blocks longer. A tenant's priorities say nothing about other tenants.
        self.seniority = (0 if request.tenant else request.priority, arrival)
        self.max_num_tokens = max_num_tokens
        self.token_ids: list[int] = list(request.prompt_token_ids)  # prompt and output
        self.output_token_ids: list[int] = []
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.block_ids: list[int] = []
        self.block_keys: list[bytes] = []
        self.num_computed_tokens = 0
        self.num_published_blocks = 0  # leading blocks that the prefix cache knows
        self.num_announced_blocks = 0  # leading blocks that it knows or expects
        self.awaited_key: bytes | None = None  # of a block that another sequence is computing
        self.num_cached_tokens = 0
        self.was_admitted = False
        self.num_scheduled_tokens = 0
        self.num_awaited_tokens = 0
        self.num_steps_in_flight = 0
        self.is_plain = request.sampling.is_plain
        num_prompt_tokens = len(request.prompt_token_ids)
        wants_scores = request.sampling.prompt_logprobs is not None
        self.num_scored_tokens = min(1, num_prompt_tokens) if wants_scores else num_prompt_tokens
        self.is_paced = False  # its prompt is long: see `pacing.py`
        self.drafter: Drafter | None = None
        self.constraint = constraint

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt alone."""
        return self.request.prompt_token_ids

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, computed or not."""
        return len(self.token_ids)

    @property
    def wants_scores(self) -> bool:
        """Whether scores of prompt tokens are still to come."""
        return self.num_scored_tokens < len(self.request.prompt_token_ids)

    def append(self, token_id: int) -> None:
        """Take the next token; its own keys and values are not computed yet."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)

    def begin_step(self, num_scheduled_tokens: int, num_awaited_tokens: int) -> None:
        """A step that takes it up to `num_scheduled_tokens` is now in flight."""
        self.num_scheduled_tokens = num_scheduled_tokens
        self.num_awaited_tokens += num_awaited_tokens
        self.num_steps_in_flight += 1

    def admit(self, block_ids: list[int], *, num_cached_blocks: int, block_size: int) -> None:
        """WAITING → RUNNING with these blocks, of which the first `num_cached_blocks` are computed."""
        self._leave(SequenceStatus.WAITING)
        self.status = SequenceStatus.RUNNING
        self.block_ids = block_ids
        self.num_computed_tokens = self.num_scheduled_tokens = num_cached_blocks * block_size
        self.num_published_blocks = num_cached_blocks
        if not self.was_admitted:
            self.num_cached_tokens = self.num_computed_tokens
            self.was_admitted = True

    def preempt(self) -> list[int]:
        """RUNNING → WAITING; returns the blocks that it held."""
        self._leave(SequenceStatus.RUNNING)
        if self.num_steps_in_flight:
            raise InternalError(f"sequence {self.request_id!r} is preempted in flight")
        self.status = SequenceStatus.WAITING
        return self.give_up_blocks()

    def finish(self, reason: FinishReason) -> None:
        """WAITING or RUNNING → FINISHED; it keeps its blocks until `give_up_blocks`."""
        if self.status is SequenceStatus.FINISHED:
            raise InternalError(f"sequence {self.request_id!r} finished twice")
        self.status = SequenceStatus.FINISHED
        self.finish_reason = reason

    def give_up_blocks(self) -> list[int]:
        """The blocks that it held, in the order of its tokens; nothing of it counts as computed any more."""
        block_ids, self.block_ids = self.block_ids, []
        self.num_computed_tokens = self.num_scheduled_tokens = 0
        self.num_published_blocks = 0
        return block_ids

    def _leave(self, expected: SequenceStatus) -> None:
        if self.status is not expected:
            raise InternalError(f"sequence {self.request_id!r} is {self.status.value}, not {expected.value}")
