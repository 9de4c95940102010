"""Runs one text request from its prompts to its last piece of text: admit → lease → encode → run → account.

Queue limits, deadlines and leases are the door's. Knows no HTTP and no JSON. Owner: the event loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from inference_server import __version__
from inference_server.config.catalog import ModelSpec
from inference_server.errors import InvalidRequest
from inference_server.generation.answer import Answer, merged
from inference_server.generation.answer_text import AnswerText
from inference_server.generation.detokenizer import Detokenizer
from inference_server.generation.door import Door, Visit
from inference_server.generation.grammars import GrammarChecker
from inference_server.generation.parsing.choose import Spelling, form_of, parser_for, spelling_of
from inference_server.generation.parsing.events import AnswerParser
from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.recorder import RequestRecorder
from inference_server.generation.requests import (
    ChatPrompt,
    Prompt,
    TextDelta,
    TextPrompt,
    TextRequest,
    TokenPrompt,
)
from inference_server.generation.sampling import (
    ModelLimits,
    candidate_sampling,
    check_prompt_scores,
    resolve_sampling,
    scored_options,
)
from inference_server.generation.scores import ScoreTrack, SharedPrompt
from inference_server.generation.stopping import StopStrings
from inference_server.generation.task import check_task
from inference_server.generation.templates import Templates
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.plan import ModelPlan
from inference_server.model_manager.record import ProgressListener
from inference_server.model_manager.status import ModelStatus
from inference_server.types import GenerationRequest, SamplingParams, Usage

PROMPT_END_TOKENS = 8  # enough to see whether a template has opened the answer's reasoning


@dataclass(frozen=True, slots=True)
class Generation:
    """A request that runs: iterate over `deltas` once; `usage` is complete when they have ended.

    `answers` has `num_candidates` for each of `prompts`, of which `num_answers` are to be given.
    `new_parser` gives what finds reasoning and calls in one answer, None where nothing is to be found.
    `fingerprint` changes whenever the same request might get another answer.
    """

    prompts: tuple[SharedPrompt, ...]
    answers: tuple[Answer, ...]
    num_answers: int
    fingerprint: str
    new_parser: Callable[[], AnswerParser | None]

    @property
    def num_candidates(self) -> int:
        """Answers per prompt."""
        return len(self.answers) // len(self.prompts)

    def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """The text of all answers as it comes. Close it to abort.

        Raises (while iterating):
            InvalidRequest: the worker refuses a prompt.
            WorkerDied, InternalError: a fault in this model.
        """
        return merged(self.answers)

    @property
    def usage(self) -> Usage:
        """Tokens so far: each prompt once, and all answers to it, also those that are not given."""
        first_answers = self.answers[:: self.num_candidates]  # the others find the prompt computed
        return Usage(
            prompt_tokens=sum(len(prompt.token_ids) for prompt in self.prompts),
            completion_tokens=sum(answer.num_output_tokens for answer in self.answers),
            cached_tokens=sum(answer.num_cached_tokens for answer in first_answers),
        )


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A request's prompts as token ids, with parameters that fit the model.

    `may_call`: the answer is the form that was asked for, or calls.
    """

    template: PromptTemplate
    prompts: tuple[tuple[Prompt, tuple[int, ...], SamplingParams], ...]
    may_call: bool

    @property
    def num_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(token_ids) for _, token_ids, _ in self.prompts)


class GenerationService:
    """Generates text for the API."""

    def __init__(self, door: Door, templates: Templates) -> None:
        self._door = door
        self._grammars = GrammarChecker()
        self._templates = templates

    @asynccontextmanager
    async def open(
        self, request: TextRequest, on_progress: ProgressListener | None = None
    ) -> AsyncIterator[Generation]:
        """Run a request for the length of the block. Leaving it early, in whatever phase, frees it at once.

        It is entered when the worker has its prompts; before that, `on_progress` hears of the model's load.

        Raises:
            UnknownModel: nothing was started; so with the next three.
            ShuttingDown, QueueFull: it is not taken now.
            InvalidRequest, ContextTooLong: it cannot be served.
            ModelLoadFailed, InsufficientMemory: the model cannot be had.
            DeadlineExceeded: the time is up, in the queue or inside the block.
        """
        status = self._door.status(request.model, request.caller)
        num_places = len(request.prompts) * request.num_candidates
        async with (
            self._door.admitted(
                status.name, num_places, request.timeout_s, request.caller, request.timeline
            ) as visit,
            self._running(request, status, visit, on_progress) as generation,
        ):
            yield generation

    @asynccontextmanager
    async def _running(
        self, request: TextRequest, status: ModelStatus, visit: Visit, on_progress: ProgressListener | None
    ) -> AsyncIterator[Generation]:
        """With the plan of the model's last load, a request is refused before the model is loaded for it."""
        plan = status.plan
        check_task(status.spec, plan, "generate")
        encoded = None
        if plan is not None:
            async with self._door.in_time(visit):
                encoded = await self._encode(request, status.spec, plan)
            visit.place.hold_tokens(encoded.num_tokens)
        leasing = self._door.leased(visit, keep_alive_s=request.keep_alive_s, on_progress=on_progress)
        async with leasing as lease:
            if encoded is None or lease.plan is not plan:
                check_task(lease.spec, lease.plan, "generate")
                encoded = await self._encode(request, lease.spec, lease.plan)
                visit.place.hold_tokens(encoded.num_tokens)
            visit.recorder.leased()
            generation = _generation(request, lease, encoded, visit.recorder)
            try:
                yield generation
            finally:
                usage = generation.usage
                visit.recorder.used(usage)
                if request.caller is not None:
                    request.caller.spend(usage.prompt_tokens + usage.completion_tokens)

    async def _encode(self, request: TextRequest, spec: ModelSpec, plan: ModelPlan) -> _Encoded:
        if request.sampling.grammar is not None:
            await self._grammars.check(request.sampling.grammar, request.tenant)
        template = await self._templates.get(plan.load.folder)
        prompts: list[tuple[Prompt, tuple[int, ...], SamplingParams]] = []
        form, options = request.sampling.grammar, scored_options(request)
        if form is not None and request.tool_use is not None:
            form = form_of(form, _spelling(request, spec, template), request.tool_use, template.texts)
            options = msgspec.structs.replace(options, grammar=form)
        limits = ModelLimits(plan.max_model_len, plan.facts.vocab_size, plan.facts.eos_token_ids)
        for prompt in request.prompts:
            if isinstance(prompt, TokenPrompt):
                _check_vocabulary(prompt.token_ids, plan.facts.vocab_size)
            token_ids = await self._templates.encode(template, prompt)
            sampling = resolve_sampling(
                options,
                spec.defaults,
                num_prompt_tokens=len(token_ids),
                limits=limits,
                prompt_param="messages" if isinstance(prompt, ChatPrompt) else "prompt",
            )
            prompts.append((prompt, token_ids, sampling))
        encoded = _Encoded(template, tuple(prompts), may_call=form != request.sampling.grammar)
        check_prompt_scores(request, encoded.num_tokens)
        return encoded


def _generation(
    request: TextRequest, lease: Lease, encoded: _Encoded, recorder: RequestRecorder
) -> Generation:
    prompts: list[SharedPrompt] = []
    answers: list[Answer] = []
    spelling = _spelling(request, lease.spec, encoded.template)
    for prompt, token_ids, sampling in encoded.prompts:
        recorder.prompt(len(token_ids))
        prompts.append(_shared_prompt(request, encoded.template, prompt, token_ids))
        for candidate in range(request.num_candidates):
            wanted = GenerationRequest(
                request_id=f"{request.request_id}-{len(answers)}",
                prompt_token_ids=token_ids,
                sampling=candidate_sampling(sampling, candidate),
                cache_salt=request.tenants_salt,
                priority=request.priority,
                tenant=request.tenant,
            )
            answers.append(
                Answer(
                    len(answers),
                    wanted,
                    lease.worker,
                    wanted=request,
                    prompt=prompts[-1],
                    text=_answer_text(request, encoded.template, prompts[-1], spelling),
                    recorder=recorder.submitted(),
                )
            )
    end = encoded.template.decode(encoded.prompts[-1][1][-PROMPT_END_TOKENS:], skip_special_tokens=False)
    use, has_form = request.tool_use, request.sampling.grammar is not None

    def new_parser() -> AnswerParser | None:
        if spelling is None:
            return None
        return parser_for(spelling, use, prompt_end=end, has_form=has_form, may_call=encoded.may_call)

    return Generation(
        tuple(prompts),
        tuple(answers),
        request.num_answers,
        fingerprint(lease.plan),
        new_parser,
    )


def _spelling(request: TextRequest, spec: ModelSpec, template: PromptTemplate) -> Spelling | None:
    """How reasoning and calls are marked in the answers; None for a request that is no chat."""
    if not all(isinstance(prompt, ChatPrompt) for prompt in request.prompts):
        return None
    return spelling_of(spec.tool_parser, spec.reasoning_parser, template.template_source)


def _answer_text(
    request: TextRequest, template: PromptTemplate, prompt: SharedPrompt, spelling: Spelling | None
) -> AnswerText:
    skips = request.skip_special_tokens
    if request.tool_use is not None and spelling is not None and spelling.marks_are_special:
        skips = False
    return AnswerText(
        Detokenizer(template.tokenizer, prompt.token_ids, skip_special_tokens=skips),
        StopStrings(request.stop, include=request.include_stop),
        None if request.sampling.logprobs is None else ScoreTrack(template.texts),
        num_chars_before=len(prompt.text) if request.echo else 0,
    )


def _shared_prompt(
    request: TextRequest, template: PromptTemplate, prompt: Prompt, token_ids: tuple[int, ...]
) -> SharedPrompt:
    skips = request.skip_special_tokens
    text = ""
    if isinstance(prompt, TextPrompt):
        text = prompt.text
    elif request.echo:
        text = template.decode(token_ids, skip_special_tokens=skips)
    return SharedPrompt(
        token_ids,
        text,
        template.texts,
        lambda: Detokenizer(template.tokenizer, (), skip_special_tokens=skips),
    )


def fingerprint(plan: ModelPlan) -> str:
    """Stands for this server version, the weights, their format and their device."""
    load = plan.load
    parts = (__version__, load.model, load.folder, load.quantization, load.dtype, load.kernels, load.device)
    return "fp_" + hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()


def _check_vocabulary(token_ids: tuple[int, ...], vocab_size: int) -> None:
    if token_ids and (max(token_ids) >= vocab_size or min(token_ids) < 0):
        raise InvalidRequest(f"token ids must be between 0 and {vocab_size - 1}", param="prompt")
