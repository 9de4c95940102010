"""Runs one request for embeddings: admit → lease → encode → embed → account.

Queue limits, deadlines and leases are the door's. Knows no HTTP and no JSON. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from pathlib import Path

import msgspec

from inference_server.access.gate import Caller
from inference_server.checkpoints.sentence import SentenceConfig, read_sentence_config
from inference_server.config.catalog import ModelSpec
from inference_server.errors import ContextTooLong, InvalidRequest, UnsupportedParameter
from inference_server.generation.door import Door, Visit
from inference_server.generation.task import check_task
from inference_server.generation.templates import MAX_TEMPLATES, Templates
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.status import ModelStatus
from inference_server.tracing.timeline import Timeline
from inference_server.types import EmbeddingRequest, Usage


class EmbeddingJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `inputs`: texts, or token ids, which are taken as they are.

    With `truncates`, inputs are cut to `max_tokens`, or with None to what the model takes; without it, too
    long ones are refused. `dimensions` None: all. The other fields: see `TextRequest`.
    """

    request_id: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    truncates: bool = False
    max_tokens: int | None = None
    dimensions: int | None = None
    timeout_s: float | None = None
    keep_alive_s: float | None = None
    caller: Caller | None = None
    timeline: Timeline | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vector of each input as little-endian float32 numbers, and what it took."""

    vectors: tuple[bytes, ...]
    usage: Usage


class EmbeddingService:
    """Embeds for the API. `max_num_seqs`: inputs that a worker computes at once."""

    def __init__(self, door: Door, templates: Templates, *, max_num_seqs: int) -> None:
        self._door = door
        self._templates = templates
        self._max_num_seqs = max_num_seqs

    async def embed(self, job: EmbeddingJob) -> Embeddings:
        """All of the job's vectors. Cancelling it frees what it holds at once.

        Raises:
            UnknownModel: nothing was started; so with the next three.
            ShuttingDown, QueueFull: it is not taken now.
            InvalidRequest, ContextTooLong: it cannot be served.
            ModelLoadFailed, InsufficientMemory: the model cannot be had.
            DeadlineExceeded: the time is up, in the queue or in the worker.
            WorkerDied, InternalError: a fault in this model.
        """
        status = self._door.status(job.model, job.caller)
        num_places = -(-len(job.inputs) // self._max_num_seqs)
        async with self._door.admitted(
            status.name, num_places, job.timeout_s, job.caller, job.timeline
        ) as visit:
            return await self._run(job, status, visit)

    async def _run(self, job: EmbeddingJob, status: ModelStatus, visit: Visit) -> Embeddings:
        """With the plan of the model's last load, a job is refused before the model is loaded for it."""
        plan = status.plan
        check_task(status.spec, plan, "embed")
        inputs = None
        if plan is not None:
            async with self._door.in_time(visit):
                inputs = await self._encode(job, status.spec, plan)
            visit.place.hold_tokens(_num_tokens(inputs))
        async with self._door.leased(visit, keep_alive_s=job.keep_alive_s) as lease:
            if inputs is None or lease.plan is not plan:
                check_task(lease.spec, lease.plan, "embed")
                inputs = await self._encode(job, lease.spec, lease.plan)
                visit.place.hold_tokens(_num_tokens(inputs))
            visit.recorder.leased()
            usage = Usage(prompt_tokens=_num_tokens(inputs), completion_tokens=0)
            visit.recorder.prompt(usage.prompt_tokens)
            request = EmbeddingRequest(request_id=job.request_id, inputs=inputs, dimensions=job.dimensions)
            try:
                vectors = await lease.worker.embed(request)
            finally:
                visit.recorder.used(usage)
                if job.caller is not None:
                    job.caller.spend(usage.prompt_tokens)
        visit.recorder.embedded()
        return Embeddings(vectors, usage)

    async def _encode(
        self, job: EmbeddingJob, spec: ModelSpec, plan: ModelPlan
    ) -> tuple[tuple[int, ...], ...]:
        """Token ids of each input, checked against the model."""
        sentence = await _sentence_config(plan.load.folder)
        if job.dimensions is not None and not sentence.is_matryoshka:
            raise UnsupportedParameter(
                f"dimensions: model {spec.name!r} was not trained for shortened vectors", param="dimensions"
            )
        limit = plan.max_model_len
        cut = min(job.max_tokens or limit, limit) if job.truncates else None
        texts = [_text(sentence, one) for one in job.inputs if isinstance(one, str)]
        template = await self._templates.get(plan.load.folder)
        encoded = iter(await self._templates.encode_texts(template, texts, cut))
        inputs = tuple([next(encoded) if isinstance(one, str) else one[:cut] for one in job.inputs])
        for index, one in enumerate(inputs):
            _check(one, index, limit, plan.facts.vocab_size)
        return inputs


async def _sentence_config(folder: str) -> SentenceConfig:
    return await asyncio.to_thread(_read_sentence_config, folder)


@functools.lru_cache(maxsize=MAX_TEMPLATES)
def _read_sentence_config(folder: str) -> SentenceConfig:
    return read_sentence_config(Path(folder))


def _num_tokens(inputs: tuple[tuple[int, ...], ...]) -> int:
    return sum(map(len, inputs))


def _text(sentence: SentenceConfig, text: str) -> str:
    text = sentence.prompt + text
    return text.lower() if sentence.lower_case else text


def _check(token_ids: tuple[int, ...], index: int, limit: int, vocab_size: int) -> None:
    if not token_ids:
        raise InvalidRequest(f"input {index} is empty once tokenized", param="input")
    if len(token_ids) > limit:
        raise ContextTooLong(
            f"input {index} has {len(token_ids)} tokens; this model takes at most {limit}. Shorten it, or "
            "set truncate_prompt_tokens to -1 to have it cut.",
            param="input",
        )
    if max(token_ids) >= vocab_size:
        raise InvalidRequest(f"token ids must be between 0 and {vocab_size - 1}", param="input")
