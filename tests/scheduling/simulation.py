"""A fake model over fake KV memory, and the checks that hold after every step.

Each slot of the memory holds a hash of its token and of the slot before it, read through the block table as
attention would. So a wrong, stale, foreign or half-computed block changes the next token, and every output
can be compared with `expected_output`, which knows nothing of blocks and batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from hashlib import blake2b

from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.configuration import SchedulerConfig
from inference_server.scheduling.scheduler import Scheduler
from inference_server.scheduling.sequence import Sequence
from inference_server.types import FinishReason, GenerationRequest, GrammarSpec, SamplingParams, TokenDelta

VOCAB_SIZE = 50
EOS = 7


def state_after(state: bytes, token_id: int) -> bytes:
    """What the model knows after one more token."""
    return blake2b(state + token_id.to_bytes(4, "little"), digest_size=8).digest()


def next_token(state: bytes, num_choices: int) -> int:
    """The model's choice."""
    return state[0] % num_choices


def expected_output(
    request: GenerationRequest, config: SchedulerConfig, num_choices: int = VOCAB_SIZE
) -> tuple[list[int], FinishReason]:
    """The plain loop: one sequence, no cache, no batch."""
    state = b""
    for token_id in request.prompt_token_ids:
        state = state_after(state, token_id)
    output: list[int] = []
    sampling = request.sampling
    while True:
        token_id = next_token(state, num_choices)
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


class FakeStep:
    """A launched step: what it needs of the batch was read when it was launched, as a real runner does.

    It computes only when its tokens are asked for, so that a block given away too early is seen.
    """

    def __init__(self, model: FakeModel, batch: Batch) -> None:
        self._model = model
        self._work = [Work.of(item) for item in batch.scheduled]

    def tokens(self) -> list[tuple[int, ...]]:
        """Compute. Everything is read before anything is written, as no order is promised."""
        alive = [work for work in self._work if work.sequence.finish_reason is None]
        self._model.fill_carried(alive)
        starts = [self._model.state_before(work) for work in alive]
        written: dict[int, Slot] = {}
        sampled: dict[Sequence, tuple[int, ...]] = {}
        for work, state in zip(alive, starts, strict=True):
            states = []
            for position in range(work.start, len(work.token_ids)):
                state = state_after(state, work.token_ids[position])
                states.append(state)
                slot = self._model.slot(work, position)
                assert slot not in written, "two sequences write to one slot in one step"
                written[slot] = Slot(state, work.sequence.request.cache_salt)
            if work.samples:
                choices = [next_token(s, self._model.num_choices) for s in states[-1 - len(work.drafts) :]]
                sampled[work.sequence] = verified(choices, work.drafts)
        self._model.write(written, sampled)
        self._model.spoil([work for work in self._work if work.sequence.finish_reason is not None])
        return [sampled.get(work.sequence, (0,)) for work in self._work if work.samples]


def verified(choices: Seq[int], drafts: Seq[int]) -> tuple[int, ...]:
    """What was sampled, for as long as the drafts before it are what was sampled there."""
    num_right = next((i for i, draft in enumerate(drafts) if draft != choices[i]), len(drafts))
    return tuple(choices[: num_right + 1])


@dataclass
class Work:
    """One sequence's part of a step, copied. `token_ids` end with the step's last, drafts included."""

    sequence: Sequence
    start: int
    token_ids: list[int]
    block_ids: list[int]
    samples: bool
    carries: bool
    drafts: tuple[int, ...]

    @staticmethod
    def of(item: ScheduledSequence) -> Work:
        """Read a scheduled sequence, and check what can be checked."""
        sequence, drafts = item.sequence, item.draft_token_ids
        end = item.start + item.num_new_tokens
        token_ids = [*sequence.token_ids, *drafts][:end]
        assert not (drafts and item.carries)
        assert item.samples or not drafts
        if item.carries:
            assert item.num_new_tokens == 1
            assert item.start == len(token_ids) == sequence.num_tokens
        else:
            assert end == len(token_ids)
        if item.samples:
            assert item.sample_position == sequence.num_tokens + item.carries
        return Work(
            sequence, item.start, token_ids, list(sequence.block_ids), item.samples, item.carries, drafts
        )


class FakeModel:
    """Computes batches over its own memory, and checks that each reads and writes what it may."""

    def __init__(self, config: SchedulerConfig, num_choices: int) -> None:
        self.num_choices = num_choices
        self._block_size = config.block_size
        self._memory: dict[int, Slot] = {}
        self._sampled: dict[Sequence, tuple[int, ...]] = {}  # by the last step

    def launch(self, batch: Batch) -> FakeStep:
        """Begin a step."""
        return FakeStep(self, batch)

    def execute(self, batch: Batch) -> list[tuple[int, ...]]:
        """Launch a step and wait for it."""
        return self.launch(batch).tokens()

    def fill_carried(self, works: Seq[Work]) -> None:
        """Give each sequence that carries a token the one that the step before has sampled."""
        for work in works:
            if work.carries:
                (token_id,) = self._sampled[work.sequence]
                work.token_ids.append(token_id)

    def state_before(self, work: Work) -> bytes:
        """Attend to all earlier positions."""
        state = b""
        for position in range(work.start):
            found = self._memory[self.slot(work, position)]
            state = state_after(state, work.token_ids[position])
            assert found.state == state, f"position {position} of {work.sequence.request_id} is not its own"
            assert found.salt == work.sequence.request.cache_salt, "read another tenant's block"
        return state

    def slot(self, work: Work, position: int) -> int:
        """Where a position lies; its block must still be the sequence's own."""
        index = position // self._block_size
        assert work.sequence.block_ids[index] == work.block_ids[index], "a block was given away in flight"
        return work.block_ids[index] * self._block_size + position % self._block_size

    def spoil(self, works: Seq[Work]) -> None:
        """What a step computes for sequences that have ended is worth nothing, and must harm nobody."""
        for work in works:
            for position in range(work.start, len(work.token_ids) + work.carries):
                self._memory[self.slot(work, position)] = Slot(b"spoilt", "nobody")

    def write(self, written: dict[int, Slot], sampled: dict[Sequence, tuple[int, ...]]) -> None:
        """The end of a step."""
        self._memory.update(written)
        self._sampled = sampled


class Unlimited:
    """A constraint that allows everything: what matters here is when its sequence may be scheduled."""

    error = None

    def write_mask(self, output_token_ids: Seq[int], address: int, num_bytes: int) -> None:
        """Nothing reads it."""


class Simulation:
    """A scheduler with a fake model, checked at every move. `outputs` and `reasons` collect the deltas.

    The model chooses among the first `num_choices` tokens: with few, guesses are often right.
    """

    def __init__(self, config: SchedulerConfig, *, num_choices: int = VOCAB_SIZE) -> None:
        self.config = config
        self.num_choices = num_choices
        self.scheduler = Scheduler(config)
        self.model = FakeModel(config, num_choices)
        self.outputs: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.cached: dict[str, int] = {}
        self.batches: list[Batch] = []
        self.in_flight: deque[tuple[Batch, FakeStep]] = deque()  # launched by `launch`
        self._num_in_flight = 0  # scheduled and neither committed nor failed

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.in_flight) or self.scheduler.has_unfinished

    def add(self, request: GenerationRequest) -> None:
        """Queue a request."""
        self.scheduler.add(request, None if request.sampling.grammar is None else Unlimited())
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
        self._check(batch, num_running, self._num_in_flight)
        self.batches.append(batch)
        self._num_in_flight += bool(batch.scheduled)
        return batch

    def fail(self, batch: Batch) -> list[str]:
        """Give up a step."""
        failed = self.scheduler.fail(batch)
        self._num_in_flight -= 1
        self.scheduler.check_integrity()
        return failed

    def commit(self, batch: Batch, sampled: Seq[Seq[int]]) -> list[TokenDelta]:
        """Commit a step and keep its deltas."""
        deltas = self.scheduler.commit(batch, sampled)
        self._num_in_flight -= 1
        self.scheduler.check_integrity()
        for delta in deltas:
            self._take(delta)
        return deltas

    def launch(self, depth: int) -> None:
        """Schedule and launch steps until `depth` are in flight or there is no more to do."""
        while len(self.in_flight) < depth and (batch := self.schedule()).scheduled:
            self.in_flight.append((batch, self.model.launch(batch)))

    def collect(self, seconds: float = 0.0) -> list[TokenDelta]:
        """Take the results of the oldest step in flight."""
        batch, step = self.in_flight.popleft()
        deltas = self.commit(batch, step.tokens())
        self.scheduler.observe(batch, seconds)
        return deltas

    def lose(self) -> list[str]:
        """The oldest step in flight fails; the ids of its requests."""
        batch, _ = self.in_flight.popleft()
        return self.fail(batch)

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
        tokens, reason = expected_output(request, self.config, self.num_choices)
        assert self.outputs[request.request_id] == tokens
        assert self.reasons[request.request_id] is reason

    def _check(self, batch: Batch, num_running_before: int, num_in_flight: int) -> None:
        assert batch.scheduled or num_in_flight or not self.scheduler.has_unfinished, (
            "an empty step while work is left"
        )
        assert batch.num_tokens <= self.config.max_num_batched_tokens
        assert batch.num_seqs <= self.config.max_num_seqs
        ids = [item.sequence.request_id for item in batch.scheduled]
        assert len(set(ids)) == len(ids), "a sequence is scheduled twice"
        assert not set(ids) & set(batch.preempted)
        if not num_in_flight and not self.config.prefill_slowdown:
            assert batch.num_seqs == self.scheduler.num_running, "a running sequence got nothing"
            assert batch.num_seqs >= num_running_before - len(batch.preempted)
        for item in batch.scheduled:
            sequence = item.sequence
            assert item.num_new_tokens >= 1
            if sequence.constraint is not None:
                assert not item.carries, "the token before must be known to say which may follow"
                assert not item.draft_token_ids
            if not num_in_flight:
                assert item.start == sequence.num_computed_tokens
                assert not item.carries
            end = item.start + item.num_new_tokens
            num_known = sequence.num_tokens + item.carries + len(item.draft_token_ids)
            assert end <= num_known
            assert end < sequence.max_num_tokens
            assert end <= len(sequence.block_ids) * self.config.block_size
            assert item.samples == (end == num_known)

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
    tenant: str = "",
    grammar: GrammarSpec | None = None,
) -> GenerationRequest:
    """A request."""
    sampling = SamplingParams(
        max_tokens=max_tokens, ignore_eos=ignore_eos, stop_token_ids=stop_token_ids, grammar=grammar
    )
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        cache_salt=salt,
        priority=priority,
        tenant=tenant,
    )
