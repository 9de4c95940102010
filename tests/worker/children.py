"""A real fork server and real scripted workers, for tests of what happens to processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from inference_server.checkpoints.scripted import write_scripted_folder
from inference_server.checkpoints.sources import ScriptedSource, parse_source
from inference_server.types import GenerationRequest, SamplingParams
from inference_server.worker import protocol
from inference_server.worker.handle import Worker
from inference_server.worker.launcher import ForkServer, ForkServerLauncher

TIMEOUT_S = 30.0


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run one test on a loop of its own, with a limit."""

    async def limited() -> None:
        await asyncio.wait_for(test, TIMEOUT_S)

    asyncio.run(limited())


@contextlib.asynccontextmanager
async def fork_server() -> AsyncIterator[ForkServer]:
    """A fork server without torch, gone at the end of the block."""
    server = ForkServer(preload_torch=False)
    try:
        yield server
    finally:
        await server.stop()


def launcher_of(
    server: ForkServer, *, hang_timeout_s: float = 60.0, load_timeout_s: float = 30.0
) -> ForkServerLauncher:
    return ForkServerLauncher(server, hang_timeout_s=hang_timeout_s, load_timeout_s=load_timeout_s)


def load_message(cache: Path, options: str = "") -> protocol.Load:
    """A scripted model with these options."""
    source = parse_source(f"scripted:?{options}" if options else "scripted")
    assert isinstance(source, ScriptedSource)
    return protocol.Load(
        model="scripted",
        folder=str(write_scripted_folder(source, cache)),
        device="cpu",
        dtype="float32",
        quantization="none",
        max_model_len=4096,
        kv_cache_tokens=8192,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        scripted=True,
    )


def ignore_progress(progress: protocol.Progress) -> None:
    """For loads whose progress is of no interest."""


@contextlib.asynccontextmanager
async def worker(cache: Path, options: str = "", *, hang_timeout_s: float = 60.0) -> AsyncIterator[Worker]:
    """One ready worker under a fork server of its own."""
    async with fork_server() as server:
        launcher = launcher_of(server, hang_timeout_s=hang_timeout_s)
        ready = await launcher.launch(load_message(cache, options), ignore_progress)
        try:
            yield ready
        finally:
            await ready.stop()


def request(request_id: str = "r", max_tokens: int = 8, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=(72, 105),
        sampling=SamplingParams(**({"max_tokens": max_tokens, "ignore_eos": True} | sampling)),
    )


async def text_of(worker: Worker, asked: GenerationRequest) -> str:
    """The whole answer of a scripted model."""
    tokens = [token async for delta in worker.generate(asked) for token in delta.token_ids]
    return bytes(token for token in tokens if token < 256).decode()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    while not condition():  # noqa: ASYNC110 - no event tells us of another process
        await asyncio.sleep(0.01)


def turns_later(num_turns: int, do: Callable[[], object]) -> None:
    """Do it when the loop has gone round so many times."""
    loop = asyncio.get_running_loop()
    if num_turns == 0:
        do()
    else:
        loop.call_soon(turns_later, num_turns - 1, do)


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
