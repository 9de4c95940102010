"""The child's side: what a forked process does, from its first message to its exit.

One loop owns the engine and the channel's receiving end. A watchdog thread sends heartbeats and ends the
process the moment the server is gone. Torch is imported only on the path that needs it.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from inference_server import errors
from inference_server.engine.memory_errors import is_out_of_memory
from inference_server.engine.text_engine import Engine, EngineFacts, TextEngine
from inference_server.worker import protocol
from inference_server.worker.channel import ChildChannel
from inference_server.worker.elapsed import LOOK_INTERVAL_S, Elapsed
from inference_server.worker.memory_limit import limit_memory
from inference_server.worker.profiling import Profiling, Recording

logger = logging.getLogger(__name__)


class Activity:
    """What the main loop is doing, for the watchdog to report. `clock` gives monotonic seconds.

    The main thread says when a job begins and ends, and the watchdog alone asks how long that has lasted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_since_s: float | None = None  # the main thread's
        self._counted_since_s: float | None = None  # the watchdog's, and what follows
        self._elapsed = Elapsed(clock())

    def __enter__(self) -> None:
        self._busy_since_s = self._clock()

    def __exit__(self, *exc_info: object) -> None:
        self._busy_since_s = None

    def restart(self) -> None:
        """A long job made progress: count from now."""
        self._busy_since_s = self._clock()

    def busy_seconds(self) -> float:
        """Seconds inside the current step or stage, 0 while waiting for work. Ask once a heartbeat."""
        since_s = self._busy_since_s
        if since_s is None:
            return 0.0
        if since_s != self._counted_since_s:
            self._counted_since_s = since_s
            self._elapsed.restart(since_s)
        return self._elapsed.look(self._clock())


def run(sock: socket.socket) -> int:
    """Serve one channel until it closes or says `Stop`; returns the exit status."""
    channel = ChildChannel(sock)
    activity = Activity()
    threading.Thread(target=_watch, args=(channel, activity), name="watchdog", daemon=True).start()
    try:
        first = _first_message(channel)
        if isinstance(first, protocol.Prepare):
            return _prepare(channel, activity, first)
        if isinstance(first, protocol.Load):
            return _work(channel, activity, first)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    logger.error("the first message was %s, not Prepare or Load", type(first).__name__)
    return 2


def _first_message(channel: ChildChannel) -> protocol.ToChild:
    """The server sends one message and waits for its answer, so nothing can follow it."""
    while not (received := channel.receive()):
        pass
    return received[0]


def _watch(channel: ChildChannel, activity: Activity) -> None:
    """Heartbeats; and when the server's end closes, the whole process ends at once."""
    poller = select.poll()
    poller.register(channel.fileno(), 0)  # POLLHUP and POLLERR are always reported
    while True:
        if poller.poll(LOOK_INTERVAL_S * 1000):
            os._exit(0)
        try:
            channel.send(protocol.Heartbeat(busy_seconds=activity.busy_seconds()))
        except OSError:
            os._exit(0)


class _Reporter:
    """A progress callback that sends each new stage, each end, and at most four advances a second."""

    def __init__(self, channel: ChildChannel, activity: Activity) -> None:
        self._channel = channel
        self._activity = activity
        self._stage: str | None = None
        self._sent_s = 0.0
        self._fraction = -1.0

    def __call__(self, stage: str, fraction: float | None) -> None:
        self._activity.restart()
        now_s = time.monotonic()
        moved = fraction is not None and abs(fraction - self._fraction) >= 0.01
        if stage != self._stage or fraction == 1.0 or (moved and now_s - self._sent_s >= 0.25):
            self._stage, self._sent_s = stage, now_s
            self._fraction = -1.0 if fraction is None else fraction
            self._channel.send(protocol.Progress(stage=stage, fraction=fraction))


def _prepare(channel: ChildChannel, activity: Activity, message: protocol.Prepare) -> int:
    from inference_server.loading.preparation import prepare

    try:
        with activity:
            prepared = prepare(
                source=message.source,
                revision=message.revision,
                sha256=message.sha256,
                cache_dir=Path(message.cache_dir),
                allow_pickle=message.allow_pickle,
                trust_remote_code=message.trust_remote_code,
                on_progress=_Reporter(channel, activity),
            )
    except Exception as error:
        _fail(channel, "fetch_failed", error)
        return 1
    channel.send(protocol.Prepared(folder=str(prepared.folder), revision=prepared.revision))
    return 0


def _work(channel: ChildChannel, activity: Activity, message: protocol.Load) -> int:
    started_s = time.monotonic()
    try:
        if message.host_memory_limit:
            limit_memory(message.host_memory_limit)
        with activity:
            engine, facts = _build_engine(message, _Reporter(channel, activity))
    except Exception as error:
        _fail(channel, "model_load_failed", error)
        return 1
    gc.collect()
    gc.freeze()  # what was loaded stays: no collection between two steps need walk through it
    channel.send(
        protocol.Ready(
            memory=facts.memory,
            device=message.device,
            dtype=facts.dtype,
            max_model_len=message.max_model_len,
            kv_cache_tokens=facts.kv_cache_tokens,
            vocab_size=facts.vocab_size,
            load_seconds=time.monotonic() - started_s,
            can_sleep=not engine.why_not_sleep,
            why_not_sleep=engine.why_not_sleep,
        )
    )
    return _serve(channel, activity, engine, Profiling(engine, lambda: _recording(message), time.monotonic))


def _build_engine(
    message: protocol.Load, on_progress: Callable[[str, float | None], None]
) -> tuple[Engine, EngineFacts]:
    if message.scripted:
        from inference_server.engine.scripted import build_scripted_engine

        return build_scripted_engine(message, on_progress)
    if message.task == "embed":
        from inference_server.engine.embedding_assembly import build_embedding_engine

        return build_embedding_engine(message, on_progress)
    from inference_server.engine.assembly import build_text_engine

    engine, facts = build_text_engine(message, on_progress)
    if message.measures_overhead:
        facts = _with_overhead(engine, facts, message, on_progress)
    return engine, facts


def _with_overhead(
    engine: TextEngine,
    facts: EngineFacts,
    message: protocol.Load,
    on_progress: Callable[[str, float | None], None],
) -> EngineFacts:
    from inference_server.engine.overhead import measure_overhead

    on_progress("measure", None)
    overhead = measure_overhead(engine, facts, message)
    memory = msgspec.structs.replace(facts.memory, overhead=overhead)
    return dataclasses.replace(facts, memory=memory)


def _serve(channel: ChildChannel, activity: Activity, engine: Engine, profiling: Profiling) -> int:
    """The loop: receive → step → deliver."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    while True:
        if poller.poll(0 if engine.has_work else _milliseconds(profiling.remaining_s)):
            for message in channel.receive():
                if isinstance(message, protocol.Stop):
                    return 0
                if not isinstance(message, protocol.Profile):
                    _apply(channel, activity, engine, message)
                elif (refusal := profiling.begin(message)) is not None:
                    channel.send(refusal)
        if profiling.is_due:
            with activity:
                ended = profiling.end()
            channel.send(ended)
        if engine.has_work:
            with activity, engine.mark("step"):
                outcome = engine.step()
            profiling.stepped()
            for failure in outcome.failures:
                channel.send(
                    protocol.RequestFailed(
                        request_id=failure.request_id,
                        code=failure.code,
                        message=failure.message,
                        param=failure.param,
                    )
                )
            channel.send(
                protocol.StepOutput(stats=outcome.stats, deltas=outcome.deltas, vectors=outcome.vectors)
            )
            if outcome.fatal is not None:
                channel.send(protocol.Failed(code="worker_died", message=outcome.fatal))
                return 1


def _milliseconds(seconds: float | None) -> float | None:
    """For a poller, which must not wake before they have passed."""
    return None if seconds is None else math.ceil(seconds * 1000)


def _recording(message: protocol.Load) -> Recording:
    from inference_server.execution.torch_profile import TorchProfile

    return TorchProfile(message.device)


def _apply(channel: ChildChannel, activity: Activity, engine: Engine, message: protocol.ToChild) -> None:
    if isinstance(message, protocol.Sleep | protocol.Wake):
        _change(channel, activity, engine, message)
    elif isinstance(message, protocol.Submit | protocol.Embed):
        try:
            engine.submit(message.request)
        except errors.HelixFlowError as error:
            channel.send(
                protocol.RequestFailed(
                    request_id=message.request.request_id,
                    code=error.code,
                    message=error.message,
                    param=error.param,
                )
            )
    elif isinstance(message, protocol.Abort):
        for request_id in message.request_ids:
            engine.abort(request_id)
        if not engine.has_work:  # no step will come to say that nothing runs any more
            channel.send(protocol.StepOutput(stats=engine.step_stats()))


def _change(
    channel: ChildChannel, activity: Activity, engine: Engine, message: protocol.Sleep | protocol.Wake
) -> None:
    """Sleep or wake, and say what is held then, or that all is as it was."""
    started_s = time.monotonic()
    falls_asleep = isinstance(message, protocol.Sleep)
    try:
        with activity:
            memory = engine.sleep() if falls_asleep else engine.wake()
    except Exception as error:
        code, text = _described(error, "model_load_failed")
        channel.send(protocol.Unchanged(code=code, message=text))
        return
    answer = protocol.Asleep if falls_asleep else protocol.Awake
    channel.send(answer(memory=memory, seconds=time.monotonic() - started_s))


def _fail(channel: ChildChannel, code: str, error: Exception) -> None:
    """Tell the server that the child's job cannot be done."""
    code, text = _described(error, code)
    channel.send(protocol.Failed(code=code, message=text))


def _described(error: Exception, code: str) -> tuple[str, str]:
    """Code and message; a foreign exception's text goes to the log only, since it may hold paths."""
    if isinstance(error, errors.HelixFlowError):
        code, text = error.code, error.message
    else:
        code = "insufficient_memory" if is_out_of_memory(error) else code
        text = f"{type(error).__name__}; the server's log has the details"
    logger.error("%s", code, exc_info=error)
    return code, text
