"""The server's handle of one model worker: requests out, deltas in, and its death told to everyone once.

Owner: the event loop. Knows nothing of models' states or budgets (the manager does).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from inference_server import errors
from inference_server.types import EmbeddingRequest, EmbeddingVector, GenerationRequest, TokenDelta
from inference_server.worker import protocol
from inference_server.worker.connection import ChildConnection
from inference_server.worker.elapsed import LOOK_INTERVAL_S, Elapsed

GRACE_S = 5.0  # between Stop and SIGKILL
MIN_SILENCE_S = 3.0  # heartbeats come about once a second: less would kill healthy workers

T = TypeVar("T")
_Item = TokenDelta | EmbeddingVector | errors.HelixFlowError

_ERRORS: dict[str, type[errors.HelixFlowError]] = {
    cls.code: cls
    for cls in (
        errors.InvalidRequest,
        errors.ContextTooLong,
        errors.UnsupportedParameter,
        errors.InsufficientMemory,
        errors.ModelLoadFailed,
        errors.ConfigError,
        errors.FetchFailed,
        errors.Conflict,
        errors.SleepUnsupported,
    )
}


def error_from_wire(code: str, message: str, param: str | None = None) -> errors.HelixFlowError:
    """The exception that a child's code stands for; unknown codes become `InternalError`."""
    return _ERRORS.get(code, errors.InternalError)(message, param=param)


class Worker(Protocol):
    """What the model manager and the generation service need of a ready worker."""

    ready: protocol.Ready
    stats: protocol.EngineStats
    closed: asyncio.Future[str]  # resolves with the reason once the process is gone; never raises
    on_step: Callable[[protocol.EngineStats], None] | None  # called after each step

    @property
    def pid(self) -> int:
        """The worker's process id."""

    @property
    def is_dying(self) -> bool:
        """Whether the process is gone or going: it takes no request any more, and `closed` resolves soon."""

    @property
    def num_requests(self) -> int:
        """Requests submitted and unfinished."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Stream the request's deltas; closing the iterator aborts the request in the worker.

        Raises (while iterating):
            WorkerDied: the process is gone.
            ShuttingDown: it was stopped before it had finished.
            InvalidRequest, ContextTooLong: the worker refused the request.
            InternalError: the model's forward pass failed for this request.
        """

    async def embed(self, request: EmbeddingRequest) -> tuple[bytes, ...]:
        """The vector of each input, as little-endian float32 numbers. Cancelling it aborts the request.

        Raises:
            WorkerDied: the process is gone.
            ShuttingDown: it was stopped before it had finished.
            InvalidRequest, ContextTooLong: the worker refused the request.
            InternalError: the model's forward pass failed for this request.
        """

    async def sleep(self) -> None:
        """Give the memory of weights and KV cache back; the process stays. Returns at once if it sleeps.

        Raises:
            SleepUnsupported: it cannot, or requests run.
            WorkerDied: the process is gone.
        """

    async def wake(self) -> None:
        """Return when it takes requests again; at once if it is awake.

        Raises:
            WorkerDied: the process is gone.
            InsufficientMemory, ModelLoadFailed: it sleeps on.
        """

    async def profile(self, path: str, seconds: float, max_steps: int) -> None:
        """Record what is computed for `seconds` or `max_steps`, and return when the file `path` is written.

        Raises:
            WorkerDied: the process is gone.
            Conflict: a profile is being taken.
            InternalError: it could not be recorded or written.
        """

    async def stop(self) -> None:
        """Fail what runs, ask, wait, kill. Returns when the process is gone and its memory is free."""

    def kill(self) -> None:
        """End the process at once, also while somebody waits for it to stop; `closed` resolves soon."""


class _Stream:
    """What comes for one request. `is_finished`: the worker has forgotten it, so nothing is left to abort."""

    def __init__(self) -> None:
        self.is_finished = False
        self._items: asyncio.Queue[_Item] = asyncio.Queue()

    def put(self, item: _Item) -> None:
        """Called by the handle as messages come."""
        self._items.put_nowait(item)

    async def next(self, kind: type[T]) -> T:
        """The next answer. Raises the error that came instead of it."""
        item = await self._items.get()
        if isinstance(item, kind):
            return item
        self.is_finished = True
        raise (
            item
            if isinstance(item, errors.HelixFlowError)
            else errors.InternalError("the worker answered a request with something else")
        )


class WorkerHandle:
    """A `Worker` backed by a real process. Create it with `launcher.ForkServerLauncher.launch`."""

    def __init__(self, ready: protocol.Ready, hang_timeout_s: float) -> None:
        self.ready = ready
        self.stats = protocol.EngineStats()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_step: Callable[[protocol.EngineStats], None] | None = None
        self._hang_timeout_s = hang_timeout_s
        self._streams: dict[str, _Stream] = {}
        self._changes: deque[asyncio.Future[None]] = deque()  # sleeps and wakes asked for, oldest first
        self._profile: asyncio.Future[None] | None = None  # asked for and not answered
        self._connection: ChildConnection | None = None
        self._death_reason: str | None = None
        self._silence = Elapsed(time.monotonic())
        self._watch: asyncio.TimerHandle | None = None

    def attach(self, connection: ChildConnection) -> None:
        """Start to own the connection of a worker that has just said `Ready`."""
        self._connection = connection
        self._watch_for_hang()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._open_connection().pid

    @property
    def is_dying(self) -> bool:
        """See `Worker.is_dying`."""
        return self._death_reason is not None

    @property
    def num_requests(self) -> int:
        """Requests submitted and unfinished."""
        return len(self._streams)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """See `Worker.generate`."""
        with self._submitted(request.request_id, protocol.Submit(request=request)) as stream:
            while not stream.is_finished:
                delta = await stream.next(TokenDelta)
                stream.is_finished = delta.finish_reason is not None
                yield delta

    async def embed(self, request: EmbeddingRequest) -> tuple[bytes, ...]:
        """See `Worker.embed`."""
        vectors: dict[int, bytes] = {}
        with self._submitted(request.request_id, protocol.Embed(request=request)) as stream:
            while len(vectors) < len(request.inputs):
                vector = await stream.next(EmbeddingVector)
                vectors[vector.index] = vector.values
            stream.is_finished = True
        return tuple(vectors[index] for index in range(len(request.inputs)))

    async def sleep(self) -> None:
        """See `Worker.sleep`."""
        if not self.ready.can_sleep:
            raise errors.SleepUnsupported(f"this model cannot sleep: {self.ready.why_not_sleep}")
        if self._streams:
            raise errors.SleepUnsupported(f"the model cannot sleep while {len(self._streams)} requests run")
        await self._change(protocol.Sleep())

    async def wake(self) -> None:
        """See `Worker.wake`."""
        await self._change(protocol.Wake())

    async def profile(self, path: str, seconds: float, max_steps: int) -> None:
        """See `Worker.profile`."""
        if self._death_reason is not None:
            raise errors.WorkerDied(self._death_reason)
        if self._profile is not None:
            raise errors.Conflict("a profile of this model is being taken; wait until it is done")
        self._profile = asyncio.get_running_loop().create_future()
        self._open_connection().send(protocol.Profile(path=path, seconds=seconds, max_steps=max_steps))
        await asyncio.shield(self._profile)  # whoever leaves early does not end it

    async def stop(self) -> None:
        """See `Worker.stop`."""
        connection = self._open_connection()
        if self._death_reason is None:
            self._death_reason = "was stopped"
        # Models leave when nobody uses them; whoever is still here is cut off with the server.
        self._fail_all(errors.ShuttingDown("the server stopped before the request had ended; send it again"))
        connection.send(protocol.Stop())
        if not await connection.wait_exit(GRACE_S):
            connection.kill()
        await connection.terminate()
        self.connection_closed(self._death_reason)

    def kill(self) -> None:
        """See `Worker.kill`."""
        self._kill(self._death_reason or "was killed")

    # ------------------------------------------------------------ called by the connection

    def receive(self, message: protocol.FromChild) -> None:
        """One message of the running worker."""
        self._silence.restart(time.monotonic())
        match message:
            case protocol.StepOutput(deltas=deltas, vectors=vectors, stats=stats):
                self.stats = stats
                for delta in deltas:
                    self._deliver(delta.request_id, delta)
                for vector in vectors:
                    self._deliver(vector.request_id, vector)
                if self.on_step is not None:
                    self.on_step(stats)
            case protocol.Heartbeat(busy_seconds=busy_seconds, stats=stats):
                if stats is not None:
                    self.stats = stats
                if busy_seconds > self._hang_timeout_s:
                    self._kill(f"hung in one step for {busy_seconds:.0f} s and was killed")
            case protocol.RequestFailed(request_id=request_id, code=code, message=text, param=param):
                self._deliver(request_id, error_from_wire(code, text, param))
            case protocol.Asleep() | protocol.Awake():
                self._changed(None)
            case protocol.Unchanged(code=code, message=text):
                self._changed(error_from_wire(code, text))
            case protocol.Profiled(code=code, message=text):
                self._profiled(error_from_wire(code, text) if code else None)
            case protocol.Failed(message=text):
                self._death_reason = f"failed: {text}"
            case _:
                self._kill(f"sent {type(message).__name__} while serving and was killed")

    def connection_closed(self, reason: str) -> None:
        """The process is gone or going: fail its requests now, tell `closed` when its memory is back."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._death_reason is None:
            self._death_reason = reason
        connection = self._open_connection()
        connection.kill()
        self._fail_all(
            errors.WorkerDied("the model's worker process ended while it held this request; send it again")
        )
        while self._changes:
            self._changed(errors.WorkerDied(f"the model's worker process {self._death_reason}"))
        self._profiled(errors.WorkerDied(f"the model's worker process {self._death_reason}"))
        if connection.exited.done():
            self._tell_closed(None)
        else:
            connection.exited.add_done_callback(self._tell_closed)

    # ------------------------------------------------------------ internals

    def _fail_all(self, error: errors.HelixFlowError) -> None:
        for stream in self._streams.values():
            stream.put(error)

    @contextmanager
    def _submitted(self, request_id: str, message: protocol.Submit | protocol.Embed) -> Iterator[_Stream]:
        """Send a request and take its answers; leaving before it has finished aborts it."""
        if self._death_reason is not None:
            raise errors.WorkerDied(self._death_reason)
        if request_id in self._streams:
            raise errors.InternalError(f"request id {request_id!r} is already in use")
        connection = self._open_connection()
        stream = self._streams[request_id] = _Stream()
        connection.send(message)
        try:
            yield stream
        finally:
            self._streams.pop(request_id, None)
            if not stream.is_finished:
                connection.send(protocol.Abort(request_ids=(request_id,)))

    async def _change(self, message: protocol.Sleep | protocol.Wake) -> None:
        """Send it and wait for its answer; the worker answers in the order in which it was asked."""
        if self._death_reason is not None:
            raise errors.WorkerDied(self._death_reason)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(answer)
        self._open_connection().send(message)
        await answer

    def _changed(self, error: errors.HelixFlowError | None) -> None:
        """The oldest sleep or wake is done, or was refused; who asked may have left."""
        if not self._changes:
            self._kill("answered a question that nobody asked and was killed")
            return
        answer = self._changes.popleft()
        if answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def _profiled(self, error: errors.HelixFlowError | None) -> None:
        """The profile is done, or will never be; who asked may have left."""
        answer, self._profile = self._profile, None
        if answer is None:
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)
            answer.exception()  # retrieved: nobody may be left to do so

    def _tell_closed(self, _: object) -> None:
        if not self.closed.done():
            self.closed.set_result(self._death_reason or "ended")

    def _deliver(self, request_id: str, item: _Item) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put(item)

    def _watch_for_hang(self) -> None:
        silent_s = self._silence.look(time.monotonic())
        if silent_s > max(self._hang_timeout_s, MIN_SILENCE_S):
            self._kill(f"gave no sign of life for {silent_s:.0f} s and was killed")
            return
        self._watch = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._watch_for_hang)

    def _kill(self, reason: str) -> None:
        self._death_reason = reason
        self._open_connection().kill()

    def _open_connection(self) -> ChildConnection:
        if self._connection is None:
            raise errors.InternalError("the worker handle has no connection yet")
        return self._connection
