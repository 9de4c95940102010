"""Starts children through the fork server and brings them to `Prepared` or `Ready`.

`ForkServer` owns the fork server process and restarts it when it dies; `ForkServerLauncher` is what the
model manager uses. Owner of both: the event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol

import msgspec

from inference_server import errors
from inference_server.worker import protocol
from inference_server.worker.connection import ChildConnection
from inference_server.worker.handle import Worker, WorkerHandle, error_from_wire

ProgressCallback = Callable[[protocol.Progress], None]
START_TIMEOUT_S = 120.0
# Nothing may start a thread or touch a device before the fork.
FORK_SERVER_ENV = {
    "KINETO_LOG_LEVEL": "6",  # torch's profiler writes lines of its own kind, most of them without need
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # progress travels as messages
    "TRANSFORMERS_VERBOSITY": "error",
}


class WorkerLauncher(Protocol):
    """What the model manager needs to bring models up."""

    async def prepare(self, message: protocol.Prepare, on_progress: ProgressCallback) -> protocol.Prepared:
        """Fetch and convert a checkpoint in a process of its own. Cancelling kills that process.

        Raises:
            FetchFailed: with the reason.
        """

    async def launch(self, message: protocol.Load, on_progress: ProgressCallback) -> Worker:
        """Start a worker and return it when it is ready. Cancelling kills the process.

        Raises:
            ModelLoadFailed, InsufficientMemory: with the reason.
        """


class ForkServerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the fork server says when it is ready to fork, or that it cannot be."""

    ready: bool
    import_seconds: float = 0.0
    error: str = ""


class Forked(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to one fork: the child's pid (its pidfd travels beside), or the error."""

    pid: int = 0
    error: str = ""


class ForkServer:
    """The process that has torch imported and forks workers in milliseconds.

    `json_logs`: what it and its children have to say is a JSON object per line.
    """

    def __init__(self, *, preload_torch: bool, json_logs: bool = False) -> None:
        self._preload_torch = preload_torch
        self._json_logs = json_logs
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._report: asyncio.Future[ForkServerReport] | None = None
        self._answers: list[asyncio.Future[tuple[int, int]]] = []

    @property
    def pid(self) -> int | None:
        """Process id of the fork server, None while none runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process if none runs; returns at once, the imports go on in the background."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "inference_server.worker.forkserver", str(theirs.fileno())]
            command += ["--preload-torch"] if self._preload_torch else []
            command += ["--log-json"] if self._json_logs else []
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C belongs to the server, which drains
                env=os.environ | FORK_SERVER_ENV,
            )
        ours.setblocking(False)
        self._control = ours
        loop = asyncio.get_running_loop()
        self._report = loop.create_future()
        loop.add_reader(ours.fileno(), self._readable)

    async def fork(self) -> tuple[int, int, socket.socket]:
        """A new child: (pid, pidfd, our end of its channel).

        Raises:
            ModelLoadFailed: the fork server could not start or could not fork.
        """
        self.start()
        report = self._report
        if report is None:
            raise errors.ModelLoadFailed("the fork server is not running")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):  # 3.11's wait_for may swallow a cancellation
                told = await asyncio.shield(report)
        except TimeoutError:
            self._gone("did not start in time")
            raise errors.ModelLoadFailed(
                f"the fork server was not ready within {START_TIMEOUT_S:.0f} s"
            ) from None
        if not told.ready or self._control is None:
            raise errors.ModelLoadFailed(f"the fork server could not start: {told.error}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        answer: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        with theirs:
            try:
                socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise errors.ModelLoadFailed(f"the fork server did not take the request: {error}") from error
        self._answers.append(answer)
        try:
            pid, pidfd = await asyncio.shield(answer)
        except BaseException:
            # The child, once forked, sees the closed channel and leaves by itself.
            ours.close()
            answer.add_done_callback(_close_pidfd)
            raise
        return pid, pidfd, ours

    async def stop(self) -> None:
        """End the process; it takes no part in ending workers (each sees its own channel close)."""
        process = self._process
        self._gone("was stopped")
        if process is not None:
            await asyncio.to_thread(process.wait)

    def _readable(self) -> None:
        if self._control is None:
            return
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
        except BlockingIOError:
            return
        except OSError as error:
            self._gone(f"broke its channel: {error}")
            return
        if not data:
            self._gone("ended")
        elif self._report is not None and not self._report.done():
            self._report.set_result(msgspec.msgpack.decode(data, type=ForkServerReport))
        elif self._answers:
            self._answer(msgspec.msgpack.decode(data, type=Forked), fds)

    def _answer(self, forked: Forked, fds: list[int]) -> None:
        answer = self._answers.pop(0)
        if forked.error or not fds:
            answer.set_exception(errors.ModelLoadFailed(f"could not start a worker process: {forked.error}"))
        else:
            answer.set_result((forked.pid, fds[0]))

    def _gone(self, reason: str) -> None:
        """Forget the process (the next `fork` starts a new one) and fail what waited for it."""
        process, control, report = self._process, self._control, self._report
        self._process = self._control = self._report = None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()
        if process is not None and process.poll() is None:
            process.kill()
            asyncio.get_running_loop().run_in_executor(None, process.wait)
        if report is not None and not report.done():
            report.set_result(ForkServerReport(ready=False, error=reason))
        answers, self._answers = self._answers, []
        for answer in answers:
            answer.set_exception(errors.ModelLoadFailed(f"the fork server {reason}"))


def _close_pidfd(answer: asyncio.Future[tuple[int, int]]) -> None:
    if not answer.cancelled() and answer.exception() is None:
        os.close(answer.result()[1])


class ForkServerLauncher:
    """`WorkerLauncher` through a fork server."""

    def __init__(self, fork_server: ForkServer, *, hang_timeout_s: float, load_timeout_s: float) -> None:
        self._fork_server = fork_server
        self._hang_timeout_s = hang_timeout_s
        self._load_timeout_s = load_timeout_s

    async def prepare(self, message: protocol.Prepare, on_progress: ProgressCallback) -> protocol.Prepared:
        """See `WorkerLauncher.prepare`. A fetch has no time limit: it may be hundreds of gigabytes."""
        child = await _Startup.fork(self._fork_server, on_progress)
        try:
            child.connection.send(message)
            answer = await child.outcome(None)
        except _ChildEnded as ended:
            raise errors.FetchFailed(f"the preparation process {ended}") from None
        finally:
            await child.connection.terminate()
        if not isinstance(answer, protocol.Prepared):
            raise errors.FetchFailed(f"the preparation process answered with {type(answer).__name__}")
        return answer

    async def launch(self, message: protocol.Load, on_progress: ProgressCallback) -> Worker:
        """See `WorkerLauncher.launch`."""
        child = await _Startup.fork(self._fork_server, on_progress)
        try:
            child.connection.send(message)
            answer = await child.outcome(self._load_timeout_s)
            if not isinstance(answer, protocol.Ready):
                raise errors.ModelLoadFailed(f"the worker answered with {type(answer).__name__}")
        except _ChildEnded as ended:
            await child.connection.terminate()
            raise errors.ModelLoadFailed(f"the worker {ended} while loading {message.model!r}") from None
        except BaseException:
            await asyncio.shield(child.connection.terminate())
            raise
        handle = WorkerHandle(answer, self._hang_timeout_s)
        handle.attach(child.connection)
        child.hand_over(handle)
        return handle


class _ChildEnded(Exception):  # noqa: N818
    """The child's channel closed before it said how its work went."""


class _Startup:
    """A child between fork and its first real answer."""

    connection: ChildConnection

    def __init__(self, on_progress: ProgressCallback) -> None:
        self._on_progress = on_progress
        self._outcome: asyncio.Future[protocol.FromChild] = asyncio.get_running_loop().create_future()
        self._handle: WorkerHandle | None = None

    @classmethod
    async def fork(cls, fork_server: ForkServer, on_progress: ProgressCallback) -> _Startup:
        child = cls(on_progress)
        pid, pidfd, sock = await fork_server.fork()
        child.connection = ChildConnection(
            pid=pid, pidfd=pidfd, on_message=child._receive, on_closed=child._closed
        )
        await child.connection.open(sock)
        return child

    async def outcome(self, timeout_s: float | None) -> protocol.FromChild:
        try:
            async with asyncio.timeout(timeout_s):  # 3.11's wait_for may swallow a cancellation
                return await asyncio.shield(self._outcome)
        except TimeoutError:
            raise errors.ModelLoadFailed(
                f"the model was not loaded within {timeout_s:.0f} s; raise --load-timeout if it needs longer"
            ) from None

    def hand_over(self, handle: WorkerHandle) -> None:
        self._handle = handle
        if self.connection.is_closed or self.connection.exited.done():
            handle.connection_closed("ended right after it was ready")

    def _receive(self, message: protocol.FromChild) -> None:
        if self._handle is not None:
            self._handle.receive(message)
        elif isinstance(message, protocol.Progress):
            self._on_progress(message)
        elif isinstance(message, protocol.Failed):
            self._settle(error_from_wire(message.code, message.message))
        elif not isinstance(message, protocol.Heartbeat) and not self._outcome.done():
            self._outcome.set_result(message)

    def _closed(self, reason: str) -> None:
        if self._handle is not None:
            self._handle.connection_closed(reason)
        else:
            self._settle(_ChildEnded("ended without an answer (killed, or out of memory)"))

    def _settle(self, error: Exception) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)
            self._outcome.exception()  # retrieved here, so that an abandoned start-up logs nothing
