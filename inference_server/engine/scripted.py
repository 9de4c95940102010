"""The engine of a scripted model: the real scheduler and loop over a runner that recites a fixed reply.

It holds no weights and needs no torch: for tests of clients, for the cost of everything around a model, and
for faults on demand. Its options stand under "scripted" in the prepared folder's config.json.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path

import msgspec

from inference_server.engine.contract import Sleepless
from inference_server.engine.embedding_engine import EmbeddingEngine
from inference_server.engine.scheduling import build_scheduler, num_blocks
from inference_server.engine.scripted_embedder import scripted_embedding_engine
from inference_server.engine.scripted_faults import Fault, commit, fault_in_file, fault_in_prompts
from inference_server.engine.text_engine import EngineFacts, TextEngine
from inference_server.errors import InsufficientMemory, ModelLoadFailed
from inference_server.scheduling.batch import Batch, ScheduledSequence
from inference_server.scheduling.pending import StepScores
from inference_server.scheduling.scheduler import MAX_IN_FLIGHT
from inference_server.types import BLOCK_SIZE, EngineSpec, MemoryReport, TokenScore

NO_MEMORY = MemoryReport(weights_bytes=0, kv_cache_bytes=0, workspace_bytes=0, rss_bytes=0)


class ScriptedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a scripted model behaves. Steps count from 1 since the worker started.

    `output_tokens` is the length of a reply that nothing else ends. `load_error` and `wake_error` are "oom"
    or "failed"; only the first wake fails. With `max_in_flight` 2 a step is launched while the one before it
    runs, as on a GPU. With `prompt_faults` a prompt that holds `fault:KIND:STAGE` brings about one of
    `scripted_faults.Fault` in "prefill" or "decode". `load_fault_file` names a file that says, at each load,
    how it goes wrong; without the file it goes well.
    """

    reply: str = "This is a scripted reply. "
    output_tokens: int = 16
    step_ms: float = 0.0
    max_in_flight: int = 1
    load_ms: float = 0.0
    load_error: str | None = None
    fail_step: int | None = None
    crash_step: int | None = None
    hang_step: int | None = None
    prompt_faults: bool = False
    load_fault_file: str | None = None
    can_sleep: bool = True
    sleep_ms: float = 0.0
    wake_ms: float = 0.0
    wake_error: str | None = None


class ScriptedRunner:
    """A `StepRunner` that recites. Token ids below 256 are bytes.

    It is certain of what it says, and finds every token of a prompt as likely as any other.
    """

    def __init__(self, options: ScriptedOptions, eos_token_id: int, vocab_size: int) -> None:
        self._options = options
        self._prompt_logprob = -math.log(vocab_size)
        self._reply = tuple(options.reply.encode())
        self._eos_token_id = eos_token_id
        self._num_steps = 0
        self._busy_until_s = 0.0  # the device computes one step after the other

    @property
    def max_in_flight(self) -> int:
        """See `StepRunner.max_in_flight`."""
        return self._options.max_in_flight

    def launch(self, batch: Batch) -> ScriptedStep:
        """See `StepRunner.launch`."""
        self._num_steps += 1
        step_s = self._options.step_ms / 1000
        self._busy_until_s = max(self._busy_until_s, time.monotonic()) + step_s
        results = [self._recite(scheduled) for scheduled in batch.sampling]
        scores = self._scores(batch, results)
        ends_s = self._busy_until_s if step_s else 0.0
        return ScriptedStep(self._fault(batch), results, scores, ends_s)

    def is_fatal(self, error: Exception) -> bool:
        """A scripted failure never spoils the device."""
        return False

    def _fault(self, batch: Batch) -> Fault | None:
        """How the step that has just been counted goes wrong, if it does."""
        options = self._options
        numbered = {
            options.crash_step: Fault.KILL,
            options.hang_step: Fault.HANG,
            options.fail_step: Fault.ERROR,
        }
        if (fault := numbered.get(self._num_steps)) is not None:
            return fault
        return fault_in_prompts(batch) if options.prompt_faults else None

    def _scores(self, batch: Batch, results: Seq[Seq[int]]) -> StepScores | None:
        outputs = {
            item.sequence.request_id: [TokenScore(0.0, 1, ((token, 0.0),)[:num_top]) for token in tokens]
            for item, tokens in zip(batch.sampling, results, strict=True)
            if (num_top := item.sequence.sampling.logprobs) is not None
        }
        prompts = {
            item.sequence.request_id: [self._prompt_score(item)] * len(item.scored)
            for item in batch.scheduled
            if item.scored
        }
        return StepScores(outputs, prompts) if outputs or prompts else None

    def _prompt_score(self, scheduled: ScheduledSequence) -> TokenScore:
        num_top = scheduled.sequence.sampling.prompt_logprobs or 0
        top = tuple([(token, self._prompt_logprob) for token in range(num_top)])
        return TokenScore(self._prompt_logprob, 1, top)

    def _recite(self, scheduled: ScheduledSequence) -> tuple[int, ...]:
        """The next token, and one more for each draft that recites correctly."""
        position = scheduled.sample_position - scheduled.sequence.num_prompt_tokens
        tokens = [self._token(scheduled, position)]
        for draft in scheduled.draft_token_ids:
            if draft != tokens[-1]:
                break
            position += 1
            tokens.append(self._token(scheduled, position))
        return tuple(tokens)

    def _token(self, scheduled: ScheduledSequence, position: int) -> int:
        sampling = scheduled.sequence.sampling
        ended = position >= max(self._options.output_tokens, sampling.min_tokens)
        if ended and not sampling.ignore_eos:
            return self._eos_token_id
        return self._reply[position % len(self._reply)]


class ScriptedStep:
    """A `PendingStep` that ends at a given time, or goes wrong."""

    def __init__(
        self, fault: Fault | None, results: Seq[Seq[int]], scores: StepScores | None, ends_s: float
    ) -> None:
        self._fault = fault
        self._results = results
        self._scores = scores
        self._ends_s = ends_s

    def tokens(self) -> Seq[Seq[int]]:
        """See `PendingStep.tokens`."""
        if self._fault is not None:
            commit(self._fault)
        if self._ends_s:
            time.sleep(max(0.0, self._ends_s - time.monotonic()))
        return self._results

    def scores(self) -> StepScores | None:
        """See `PendingStep.scores`."""
        return self._scores


class ScriptedSleeper:
    """A `Sleeper` that holds nothing, and takes its time all the same."""

    def __init__(self, options: ScriptedOptions) -> None:
        self._options = options
        self._wake_error = options.wake_error

    def sleep(self) -> None:
        """See `Sleeper.sleep`."""
        time.sleep(self._options.sleep_ms / 1000)

    def wake(self) -> None:
        """See `Sleeper.wake`."""
        time.sleep(self._options.wake_ms / 1000)
        error, self._wake_error = self._wake_error, None
        _raise_scripted(error, "wake")

    def memory(self) -> MemoryReport:
        """See `Sleeper.memory`."""
        return NO_MEMORY


def build_scripted_engine(
    spec: EngineSpec, on_progress: Callable[[str, float | None], None]
) -> tuple[TextEngine | EmbeddingEngine, EngineFacts]:
    """An engine over the prepared folder of a scripted model.

    Raises:
        ModelLoadFailed, InsufficientMemory: the options say so, or are wrong.
    """
    config = json.loads((Path(spec.folder) / "config.json").read_text(encoding="utf-8"))
    try:
        options = msgspec.convert(config.get("scripted", {}), ScriptedOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ModelLoadFailed(f"the scripted model's options are wrong: {error}") from error
    if options.max_in_flight not in (1, MAX_IN_FLIGHT):
        raise ModelLoadFailed(f"max_in_flight is 1 or {MAX_IN_FLIGHT}")
    _pretend_to_load(options, on_progress)
    eos_token_id, vocab_size = int(config["eos_token_id"]), int(config["vocab_size"])
    if spec.task == "embed":
        facts = EngineFacts(memory=NO_MEMORY, dtype="float32", kv_cache_tokens=0, vocab_size=vocab_size)
        return scripted_embedding_engine(spec, vocab_size, options.step_ms), facts
    scheduler = build_scheduler(spec, {eos_token_id})
    facts = EngineFacts(
        memory=NO_MEMORY,
        dtype="float32",
        kv_cache_tokens=num_blocks(spec) * BLOCK_SIZE,
        vocab_size=vocab_size,
    )
    sleeper = ScriptedSleeper(options) if options.can_sleep else Sleepless("it was scripted to stay awake")
    runner = ScriptedRunner(options, eos_token_id, facts.vocab_size)
    return TextEngine(scheduler, runner, facts.vocab_size, sleeper=sleeper), facts


def _pretend_to_load(options: ScriptedOptions, on_progress: Callable[[str, float | None], None]) -> None:
    num_parts = 20
    for part in range(num_parts if options.load_ms else 0):
        on_progress("load", part / num_parts)
        time.sleep(options.load_ms / 1000 / num_parts)
    if options.load_fault_file is not None:
        _go_wrong_as_told(Path(options.load_fault_file))
    _raise_scripted(options.load_error, "load")


def _raise_scripted(error: str | None, action: str) -> None:
    if error == "oom":
        raise InsufficientMemory("this model was scripted to find too little memory")
    if error is not None:
        raise ModelLoadFailed(f"this model was scripted to fail to {action}")


def _go_wrong_as_told(file: Path) -> None:
    try:
        fault = fault_in_file(file)
    except ValueError as error:
        raise ModelLoadFailed(f"the scripted model's load_fault_file is wrong: {error}") from error
    if fault is not None:
        commit(fault)
