"""Runs one request from its prompt to its last piece of text: admit → lease → encode → run → account.

Owner: the event loop; long prompts are encoded in threads. Knows no HTTP and no JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import msgspec

from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import DeadlineExceeded, OverLimit, ShuttingDown
from inference_server.generation.admission import Admission
from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.requests import ChatPrompt, TextDelta, TextPrompt, TextRequest, TokenPrompt
from inference_server.generation.sampling import resolve_sampling
from inference_server.generation.text_stream import TextStream
from inference_server.generation.timing import RequestTimer
from inference_server.model_manager.lease import Lease
from inference_server.model_manager.manager import ModelManager
from inference_server.model_manager.plan import ModelPlan
from inference_server.telemetry.metrics import Metrics
from inference_server.types import GenerationRequest, TokenDelta

INLINE_CHARS = 2048  # shorter prompts are encoded on the loop: a thread would cost more than it saves


class GenerationService:
    """Generates text for the API. After `shut_down` new requests are refused; running ones go on."""

    def __init__(self, manager: ModelManager, settings: Settings, metrics: Metrics) -> None:
        self._manager = manager
        self._metrics = metrics
        self._max_timeout_s = settings.request_timeout
        self._admission = Admission(
            max_running=settings.max_num_seqs,
            max_queued=settings.max_num_queued_reqs,
            max_queued_total=settings.max_queued_total,
        )
        self._templates: dict[str, tuple[Path, PromptTemplate]] = {}  # model → (folder, template)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode")
        self._draining = False

    @property
    def num_requests(self) -> int:
        """Requests in progress, queued ones included."""
        return self._admission.num_requests

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    def shut_down(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    async def checked(self, request: TextRequest, spec: ModelSpec) -> TextRequest:
        """The request, refused now if `stream` would refuse it, as far as that is known without a load.

        Its prompt comes back encoded where the model's tokenizer is at hand.

        Raises:
            ShuttingDown, QueueFull: the request would not be taken.
            InvalidRequest, ContextTooLong: the prompt cannot be served.
        """
        self._refuse_if_draining()
        self._admission.check(spec.name)
        plan = self._manager.status(spec.name).plan
        if plan is not None:
            prompt = await self._encode(await self._template(spec, plan), request)
            resolve_sampling(
                request.sampling,
                spec.defaults,
                num_prompt_tokens=len(prompt),
                max_model_len=plan.max_model_len,
            )
            return msgspec.structs.replace(request, prompt=TokenPrompt(prompt))
        return request

    async def stream(self, request: TextRequest, spec: ModelSpec) -> AsyncGenerator[TextDelta, None]:
        """The answer, piece by piece; the last piece has the finish reason and the usage.

        Closing the iterator, or cancelling, frees the request everywhere within one step.

        Raises (while iterating):
            QueueFull, ShuttingDown: nothing was started.
            InvalidRequest, ContextTooLong: the prompt cannot be served.
            ModelLoadFailed, InsufficientMemory: the model cannot be had.
            DeadlineExceeded: the time is up, in the queue or during generation.
            WorkerDied, InternalError: a fault in this model.
        """
        timer = RequestTimer(self._metrics, spec.name)
        deadline_s = time.monotonic() + min(request.timeout_s or self._max_timeout_s, self._max_timeout_s)
        try:
            self._refuse_if_draining()
            with self._admission.admitted(spec.name):
                async with self._manager.acquire(spec.name, deadline_s=deadline_s) as lease:
                    timer.leased()
                    async with aclosing(self._generate(lease, request, timer, deadline_s)) as pieces:
                        async for piece in pieces:
                            yield piece
            self._admission.observe(timer.elapsed_s)
        except OverLimit as refusal:
            self._metrics.rejected.labels(spec.name, refusal.code).inc()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            timer.cancelled()
            raise

    async def _generate(
        self, lease: Lease, request: TextRequest, timer: RequestTimer, deadline_s: float
    ) -> AsyncGenerator[TextDelta, None]:
        template = await self._template(lease.spec, lease.plan)
        prompt = await self._encode(template, request)
        sampling = resolve_sampling(
            request.sampling,
            lease.spec.defaults,
            num_prompt_tokens=len(prompt),
            max_model_len=lease.plan.max_model_len,
        )
        text = TextStream(template.tokenizer, prompt, request.stop)
        generation = GenerationRequest(
            request_id=request.request_id,
            prompt_token_ids=prompt,
            sampling=sampling,
            cache_salt=request.cache_salt,
            priority=request.priority,
        )
        async with aclosing(lease.worker.generate(generation)) as deltas:
            while True:
                delta = await _next_delta(deltas, deadline_s)
                timer.token()
                piece = text.feed(delta)
                if piece.finish_reason is not None and piece.usage is not None:
                    timer.finished(piece.usage, piece.finish_reason)
                    yield piece
                    return
                if piece.text:
                    yield piece

    async def _template(self, spec: ModelSpec, plan: ModelPlan) -> PromptTemplate:
        """The model's tokenizer and template, read once per prepared folder."""
        folder = Path(plan.load.folder)
        known = self._templates.get(spec.name)
        if known is None or known[0] != folder:
            loop = asyncio.get_running_loop()
            known = (folder, await loop.run_in_executor(self._threads, PromptTemplate, folder))
            self._templates[spec.name] = known
        return known[1]

    async def _encode(self, template: PromptTemplate, request: TextRequest) -> tuple[int, ...]:
        if _num_chars(request) <= INLINE_CHARS:
            return _token_ids(template, request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _token_ids, template, request)

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise ShuttingDown(
                "the server is shutting down; send the request to another one", retry_after_s=5
            )


async def _next_delta(deltas: AsyncIterator[TokenDelta], deadline_s: float) -> TokenDelta:
    """Raises DeadlineExceeded when the time is up first."""
    remaining_s = deadline_s - time.monotonic()
    try:
        async with asyncio.timeout(remaining_s):
            return await anext(deltas)
    except TimeoutError:
        raise DeadlineExceeded("the request's time was up before its answer was complete") from None


def _token_ids(template: PromptTemplate, request: TextRequest) -> tuple[int, ...]:
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        return tuple(
            template.encode_chat(prompt.messages, add_generation_prompt=prompt.add_generation_prompt)
        )
    if isinstance(prompt, TextPrompt):
        return tuple(template.encode_text(prompt.text))
    return prompt.token_ids


def _num_chars(request: TextRequest) -> int:
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        return sum(len(str(message.get("content", ""))) for message in prompt.messages)
    return len(prompt.text) if isinstance(prompt, TextPrompt) else 0
