"""A fake model over fake KV memory, and the checks that hold after every step.

Each slot of the memory holds a hash of its token and of the slot before it, read through the block table as
attention would. So a wrong, stale, foreign or half-computed block changes the next token, and every output
can be compared with `expected_output`, which knows nothing of blocks and batches.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from hashlib import blake2b

from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.scheduler import Scheduler, SchedulerConfig
from inference_server.types import FinishReason, GenerationRequest, SamplingParams, TokenDelta

VOCAB_SIZE = 50
EOS = 7


def state_after(state: bytes, token_id: int) -> bytes:
    """What the model knows after one more token."""
    return blake2b(state + token_id.to_bytes(4, "little"), digest_size=8).digest()


def next_token(state: bytes) -> int:
    """The model's choice."""
    return state[0] % VOCAB_SIZE


def expected_output(request: GenerationRequest, config: SchedulerConfig) -> tuple[list[int], FinishReason]:
    """The plain loop: one sequence, no cache, no batch."""
    state = b""
    for token_id in request.prompt_token_ids:
        state = state_after(state, token_id)
    output: list[int] = []
    sampling = request.sampling
    while True:
        token_id = next_token(state)
        output.append(token_id)
        state = state_after(state, token_id)
        if (token_id in config.eos_token_ids and not sampling.ignore_eos) or (
            token_id in sampling.stop_token_ids
        ):
            return output, FinishReason.STOP
        full = len(request.prompt_token_ids) + len(output) >= config.max_model_len
        if full or len(output) >= sampling.max_tokens:
            return output, FinishReason.LENGTH


@dataclass(frozen=True)
class Slot:
    """What one token position of KV memory holds, and who wrote it."""

    state: bytes
    salt: str


class FakeModel:
    """Computes batches over its own memory, and checks that each reads and writes what it may."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._block_size = config.block_size
        self._memory: dict[int, Slot] = {}

    def execute(self, batch: Batch) -> list[int]:
        """The sampled tokens. Everything is read before anything is written, as no order is promised."""
        starts = [self._state_before(item) for item in batch.scheduled]
        written: dict[int, Slot] = {}
        sampled = []
        for item, state in zip(batch.scheduled, starts, strict=True):
            sequence = item.sequence
            for position in range(item.start, item.start + item.num_new_tokens):
                state = state_after(state, sequence.token_ids[position])
                slot = self._slot(item, position)
                assert slot not in written, "two sequences write to one slot in one step"
                written[slot] = Slot(state, sequence.request.cache_salt)
            if item.samples:
                sampled.append(next_token(state))
        self._memory.update(written)
        return sampled

    def _state_before(self, item: ScheduledSequence) -> bytes:
        """Attend to all earlier positions."""
        state = b""
        for position in range(item.start):
            found = self._memory[self._slot(item, position)]
            state = state_after(state, item.sequence.token_ids[position])
            assert found.state == state, f"position {position} of {item.sequence.request_id} is not its own"
            assert found.salt == item.sequence.request.cache_salt, "read another tenant's block"
        return state

    def _slot(self, item: ScheduledSequence, position: int) -> int:
        block_id = item.sequence.block_ids[position // self._block_size]
        return block_id * self._block_size + position % self._block_size


class Simulation:
    """A scheduler with a fake model, checked at every move. `outputs` and `reasons` collect the deltas."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.model = FakeModel(config)
        self.outputs: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.cached: dict[str, int] = {}
        self.batches: list[Batch] = []

    def add(self, request: GenerationRequest) -> None:
        """Queue a request."""
        self.scheduler.add(request)
        self.scheduler.check_integrity()

    def abort(self, request_id: str) -> bool:
        """Abort a request."""
        found = self.scheduler.abort(request_id)
        self.scheduler.check_integrity()
        return found

    def schedule(self) -> Batch:
        """Schedule a step and check it."""
        num_running = self.scheduler.num_running
        batch = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.batches.append(batch)
        self._check(batch, num_running)
        return batch

    def commit(self, batch: Batch, sampled: Seq[int]) -> list[TokenDelta]:
        """Commit a step and keep its deltas."""
        deltas = self.scheduler.commit(batch, sampled)
        self.scheduler.check_integrity()
        for delta in deltas:
            self._take(delta)
        return deltas

    def step(self) -> list[TokenDelta]:
        """One whole step."""
        batch = self.schedule()
        return self.commit(batch, self.model.execute(batch))

    def run(self, *, max_steps: int = 10_000) -> int:
        """Steps until nothing is left; returns how many."""
        for num_steps in range(max_steps):
            if not self.scheduler.has_unfinished:
                return num_steps
            self.step()
        raise AssertionError(f"not finished after {max_steps} steps")

    def assert_output(self, request: GenerationRequest) -> None:
        """The request's output is what the plain loop gives."""
        tokens, reason = expected_output(request, self.config)
        assert self.outputs[request.request_id] == tokens
        assert self.reasons[request.request_id] is reason

    def _check(self, batch: Batch, num_running_before: int) -> None:
        assert batch.scheduled or not self.scheduler.has_unfinished, "an empty step while work is left"
        assert batch.num_tokens <= self.config.max_num_batched_tokens
        assert batch.num_seqs <= self.config.max_num_seqs
        ids = [item.sequence.request_id for item in batch.scheduled]
        assert len(set(ids)) == len(ids), "a sequence is scheduled twice"
        assert not set(ids) & set(batch.preempted)
        assert batch.num_seqs == self.scheduler.num_running, "a running sequence got nothing"
        assert batch.num_seqs >= num_running_before - len(batch.preempted)
        for item in batch.scheduled:
            assert item.num_new_tokens >= 1
            assert item.start == item.sequence.num_computed_tokens
            end = item.start + item.num_new_tokens
            assert end <= item.sequence.num_tokens
            assert end <= len(item.sequence.block_ids) * self.config.block_size
            assert item.samples == (end == item.sequence.num_tokens)

    def _take(self, delta: TokenDelta) -> None:
        name = delta.request_id
        assert name not in self.reasons, "a delta after the last"
        if name in self.outputs:
            assert delta.num_cached_tokens == 0, "cached tokens reported twice"
        else:
            self.cached[name] = delta.num_cached_tokens
        self.outputs.setdefault(name, []).extend(delta.token_ids)
        if delta.finish_reason is not None:
            self.reasons[name] = delta.finish_reason


def make_config(**changes: object) -> SchedulerConfig:
    """A small configuration."""
    values: dict[str, object] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 8,
        "max_model_len": 64,
        "block_size": 4,
        "num_blocks": 32,
        "eos_token_ids": frozenset({EOS}),
        "vocab_size": VOCAB_SIZE,
    }
    return SchedulerConfig(**(values | changes))  # type: ignore[arg-type]


def make_request(
    request_id: str,
    prompt: Seq[int],
    *,
    max_tokens: int = 4,
    ignore_eos: bool = True,
    stop_token_ids: tuple[int, ...] = (),
    salt: str = "",
    priority: int = 0,
) -> GenerationRequest:
    """A request."""
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos, stop_token_ids=stop_token_ids)
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        cache_salt=salt,
        priority=priority,
    )
