"""What a child's channel and process do at awkward moments. The children here are small programs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from inference_server import errors
from inference_server.types import MemoryReport
from inference_server.worker import protocol
from inference_server.worker.channel import encode
from inference_server.worker.handle import Worker
from inference_server.worker.launcher import ForkServer, ProgressCallback
from tests.worker.children import (
    TIMEOUT_S,
    ignore_progress,
    launcher_of,
    load_message,
    request,
    run,
    text_of,
    turns_later,
)

READY = protocol.Ready(
    memory=MemoryReport(weights_bytes=1, kv_cache_bytes=1, workspace_bytes=0, rss_bytes=0),
    device="cpu",
    dtype="float32",
    max_model_len=64,
    kv_cache_tokens=64,
    vocab_size=10,
    load_seconds=0.0,
)
BEGINNING = """
import os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
channel.recv(65536)
def say_ready():  # and before, how far it has come
    channel.sendall(bytes.fromhex(sys.argv[2]))
def live_on():
    os.read(0, 1)  # until the test is over
def leave_a_helper():
    if os.fork() == 0:
        live_on()
        os._exit(0)
"""


class OneProgram(ForkServer):
    """Its only child is a program, which goes on from `BEGINNING`. Ends with the block."""

    def __init__(self, program: str) -> None:
        super().__init__(preload_torch=False)
        self._program = program
        self.child: subprocess.Popen[bytes] | None = None

    async def fork(self) -> tuple[int, int, socket.socket]:
        return self._fork()

    def _fork(self) -> tuple[int, int, socket.socket]:
        ours, theirs = socket.socketpair()
        said = encode(protocol.Progress(stage="load")) + encode(READY)
        with theirs:
            self.child = subprocess.Popen(
                [sys.executable, "-c", BEGINNING + self._program, str(theirs.fileno()), said.hex()],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        return self.child.pid, os.pidfd_open(self.child.pid), ours

    def end(self) -> None:
        if self.child is not None:
            self.child.communicate()  # ends its input, and with it every helper


@asynccontextmanager
async def launching(
    tmp_path: Path, program: str, on_progress: ProgressCallback = ignore_progress
) -> AsyncIterator[asyncio.Task[Worker]]:
    server = OneProgram(program)
    try:
        yield asyncio.create_task(launcher_of(server).launch(load_message(tmp_path), on_progress))
    finally:
        server.end()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_worker_that_closes_its_channel_right_after_it_was_ready_is_gone(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def check() -> None:
        async with launching(tmp_path, "say_ready(); channel.close(); live_on()") as launch:
            worker = await launch
            await worker.closed
            with pytest.raises(errors.WorkerDied):
                await text_of(worker, request())
            await worker.stop()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(check(), TIMEOUT_S))


def test_the_death_of_a_worker_is_noticed_though_a_helper_holds_its_channel_open(tmp_path: Path) -> None:
    async def check() -> None:
        async with launching(tmp_path, "leave_a_helper(); say_ready(); live_on()") as launch:
            worker = await launch
            answer = asyncio.create_task(text_of(worker, request()))
            await asyncio.sleep(0)
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(errors.WorkerDied):
                await answer
            assert await worker.closed == "ended"

    run(check())


def test_a_load_fails_that_leaves_nothing_but_a_helper(tmp_path: Path) -> None:
    async def check() -> None:
        async with launching(tmp_path, "leave_a_helper(); os._exit(1)") as launch:
            with pytest.raises(errors.ModelLoadFailed, match="without an answer"):
                await launch

    run(check())


def test_what_a_worker_says_before_it_ends_is_heard(tmp_path: Path) -> None:
    async def check() -> None:
        async with launching(tmp_path, "leave_a_helper(); say_ready(); os._exit(1)") as launch:
            worker = await launch
            assert worker.ready == READY
            await worker.closed
            await worker.stop()

    run(check())


@pytest.mark.parametrize("num_turns", range(5))
def test_a_load_that_is_cancelled_as_it_becomes_ready_is_cancelled(tmp_path: Path, num_turns: int) -> None:
    cancelled: list[bool] = []

    async def check() -> None:
        def arrived(progress: protocol.Progress) -> None:  # `Ready` is in the same bytes
            turns_later(num_turns, lambda: cancelled.append(launch.cancel()))

        async with launching(tmp_path, "say_ready(); live_on()", arrived) as launch:
            await asyncio.wait({launch})
            assert launch.cancelled() is any(cancelled)
            if not launch.cancelled():
                await launch.result().stop()

    run(check())
