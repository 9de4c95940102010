"""A model without a process: real manager, real tokenizer folder, fake launcher and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inference_server import errors
from inference_server.checkpoints.scripted import write_scripted_folder
from inference_server.checkpoints.sources import ScriptedSource
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.settings import Settings
from inference_server.engine.scripted_embedder import ScriptedEmbedder
from inference_server.generation.services import build_services
from inference_server.model_manager.devices import HOST, DeviceMemory
from inference_server.model_manager.manager import ModelManager
from inference_server.telemetry.metrics import Metrics
from inference_server.types import (
    EmbeddingRequest,
    EngineStats,
    FinishReason,
    GenerationRequest,
    MemoryReport,
    TokenDelta,
    TokenScore,
)
from inference_server.worker import protocol

EOS = 259  # <|im_end|> of the scripted tokenizer, whose other ids are bytes
GIB = 1 << 30


def scores_of(
    request: GenerationRequest, tokens: Sequence[int], num_top: int | None
) -> tuple[TokenScore, ...]:
    """Each token is likely, the more so the larger the request's seed; "?" and "!" come after it."""
    if num_top is None:
        return ()
    logprob = -1.0 / (1 + (request.sampling.seed or 0))
    others = ((ord("?"), -2.0), (ord("!"), -3.0))
    return tuple([TokenScore(logprob, 1, ((token, logprob), *others)[:num_top]) for token in tokens])


def prompt_deltas(request: GenerationRequest) -> list[TokenDelta]:
    """The scores of the prompt's tokens, in two pieces, if they are asked for."""
    prompt = request.prompt_token_ids
    scores = scores_of(request, prompt[1:], request.sampling.prompt_logprobs)
    pieces = [piece for piece in (scores[: len(scores) // 2], scores[len(scores) // 2 :]) if piece]
    return [TokenDelta(request_id=request.request_id, prompt_scores=piece) for piece in pieces]


class FakeWorker:
    """Answers every request with `reply`, a byte per step; with a `gate`, a step per permit."""

    def __init__(self, load: protocol.Load, reply: bytes) -> None:
        self.reply = reply
        self.tokens: list[int] | None = None  # said in place of `reply`
        self.end_token = EOS
        self.reply_to: Callable[[GenerationRequest], bytes] = lambda request: self.reply
        self.pid = 1
        self.stats = EngineStats()
        self.on_step: Callable[[EngineStats], None] | None = None
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.gate: asyncio.Semaphore | None = None
        self.fail_after: tuple[int, errors.HelixFlowError] | None = None
        self.last_reason = FinishReason.STOP
        self.seen: list[GenerationRequest] = []
        self.embedded: list[EmbeddingRequest] = []
        self.open: set[str] = set()
        self.aborted: list[str] = []
        self.ready = protocol.Ready(
            memory=MemoryReport(weights_bytes=1, kv_cache_bytes=0, workspace_bytes=0, rss_bytes=0),
            device=load.device,
            dtype=load.dtype,
            max_model_len=load.max_model_len,
            kv_cache_tokens=load.kv_cache_tokens,
            vocab_size=260,
            load_seconds=0.0,
            can_sleep=True,
        )

    @property
    def is_dying(self) -> bool:
        return self.closed.done()

    @property
    def num_requests(self) -> int:
        return len(self.open)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        self.seen.append(request)
        self.open.add(request.request_id)
        finished = False
        try:
            for step, delta in enumerate(self._deltas(request)):
                if self.gate is not None:
                    await self.gate.acquire()
                await asyncio.sleep(0)
                if self.fail_after is not None and step == self.fail_after[0]:
                    raise self.fail_after[1]
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self.open.discard(request.request_id)
            if not finished:
                self.aborted.append(request.request_id)

    def _deltas(self, request: GenerationRequest) -> list[TokenDelta]:
        reply = list(self.reply_to(request)) if self.tokens is None else self.tokens
        if reply[-1] != self.end_token:
            reply = [*reply, self.end_token]
        tokens = reply if not request.sampling.ignore_eos else reply[:-1] * 100
        tokens = tokens[: request.sampling.max_tokens]
        reason = self.last_reason if tokens[-1] == self.end_token else FinishReason.LENGTH
        return prompt_deltas(request) + [
            TokenDelta(
                request_id=request.request_id,
                token_ids=(token,),
                finish_reason=reason if index == len(tokens) - 1 else None,
                num_cached_tokens=2 if index == 0 else 0,
                scores=scores_of(request, (token,), request.sampling.logprobs),
            )
            for index, token in enumerate(tokens)
        ]

    async def embed(self, request: EmbeddingRequest) -> tuple[bytes, ...]:
        self.open.add(request.request_id)
        try:
            if self.gate is not None:
                await self.gate.acquire()
            if self.fail_after is not None:
                raise self.fail_after[1]
            self.embedded.append(request)
            return tuple(
                ScriptedEmbedder(0).embed(request.inputs, [request.dimensions] * len(request.inputs))
            )
        finally:
            self.open.discard(request.request_id)

    async def sleep(self) -> None:
        """Nothing to give back."""

    async def wake(self) -> None:
        """Nothing to bring back."""

    async def stop(self) -> None:
        if not self.closed.done():
            self.closed.set_result("was stopped")


@dataclass
class FakeLauncher:
    """Prepares the scripted folder at once; a load waits for `may_launch` and may raise `launch_error`."""

    cache_dir: Path
    reply: bytes = b"Hello, world."
    may_launch: asyncio.Event = field(default_factory=asyncio.Event)
    launching: asyncio.Event = field(default_factory=asyncio.Event)
    launch_error: errors.HelixFlowError | None = None
    workers: list[FakeWorker] = field(default_factory=list)
    report: Callable[[protocol.Progress], None] = lambda progress: None

    async def prepare(
        self, message: protocol.Prepare, on_progress: Callable[[protocol.Progress], None]
    ) -> protocol.Prepared:
        folder = write_scripted_folder(ScriptedSource(), self.cache_dir)
        return protocol.Prepared(folder=str(folder), revision=None)

    async def launch(
        self, message: protocol.Load, on_progress: Callable[[protocol.Progress], None]
    ) -> FakeWorker:
        self.report = on_progress
        self.launching.set()
        await self.may_launch.wait()
        if self.launch_error is not None:
            raise self.launch_error
        self.workers.append(FakeWorker(message, self.reply))
        return self.workers[-1]


class House:
    """Everything behind the API over one fake model, "demo" with alias "gpt-3.5-turbo", and "other"."""

    def __init__(
        self, tmp_path: Path, *, loads: bool = True, demo: ModelSpec | None = None, **settings: object
    ):
        self.launcher = FakeLauncher(tmp_path)
        if loads:
            self.launcher.may_launch.set()
        specs = (
            demo or ModelSpec(name="demo", source="scripted", aliases=("gpt-3.5-turbo",), max_model_len=256),
            ModelSpec(name="other", source="scripted", max_model_len=256),
            ModelSpec(name="embedder", source="scripted", task="embed"),
        )
        self.catalog = Catalog(models={spec.name: spec for spec in specs})
        self.settings = Settings(cache_dir=str(tmp_path), **settings)  # type: ignore[arg-type]
        self.metrics = Metrics(self.catalog.models)
        self.manager = ModelManager(
            self.catalog,
            self.settings,
            self.launcher,
            observer=self.metrics,
            devices=lambda: {HOST: DeviceMemory(total_bytes=64 * GIB, free_bytes=64 * GIB)},
        )
        self.services = build_services(self.manager, self.settings, self.metrics)
        self.service, self.door = self.services.text, self.services.door

    @property
    def worker(self) -> FakeWorker:
        return self.launcher.workers[-1]

    async def warm(self) -> FakeWorker:
        await self.manager.load("demo")
        return self.worker

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Let time pass until the condition holds: for what threads do, which `settle` cannot follow."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds
            await asyncio.sleep(0.001)


async def settle(rounds: int = 20) -> None:
    """Let everything that can run, run."""
    for _ in range(rounds):
        await asyncio.sleep(0)
