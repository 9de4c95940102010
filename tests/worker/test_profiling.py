"""A worker's part in a profile: when it is over, what is answered, and that the engine is left as it was."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import pytest

from inference_server.engine.text_engine import Engine, Mark, no_mark
from inference_server.worker import protocol
from inference_server.worker.profiling import Profiling

MESSAGE = protocol.Profile(path="/x/trace.json.gz", seconds=2.0, max_steps=3)


class FakeEngine:
    mark: Mark = staticmethod(no_mark)


class FakeRecording:
    def __init__(self) -> None:
        self.saved: list[str] = []
        self.error: Exception | None = None

    def mark(self, name: str) -> AbstractContextManager[object]:
        return nullcontext()

    def save(self, path: str) -> None:
        if self.error is not None:
            raise self.error
        self.saved.append(path)


class Room:
    """A profiling over fakes, with a clock to turn."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.engine = FakeEngine()
        self.recording = FakeRecording()
        self.profiling = Profiling(cast(Engine, self.engine), lambda: self.recording, lambda: self.now_s)


def test_without_a_message_nothing_is_due_and_nobody_is_woken() -> None:
    room = Room()
    assert (room.profiling.is_due, room.profiling.remaining_s) == (False, None)
    assert room.engine.mark("x") is room.engine.mark("y"), "no mark costs next to nothing"


def test_it_ends_after_its_seconds_and_leaves_the_engine_as_it_was() -> None:
    room = Room()
    assert room.profiling.begin(MESSAGE) is None
    assert room.engine.mark == room.recording.mark
    room.now_s += 1.5
    assert (room.profiling.is_due, room.profiling.remaining_s) == (False, 0.5)
    room.profiling.stepped()
    room.now_s += 0.75
    assert room.profiling.is_due
    assert room.profiling.end() == protocol.Profiled(num_steps=1, seconds=2.25)
    assert room.recording.saved == [MESSAGE.path]
    assert room.engine.mark is no_mark
    assert not room.profiling.is_due


def test_it_ends_sooner_where_there_are_many_steps() -> None:
    room = Room()
    room.profiling.begin(MESSAGE)
    for _ in range(3):
        assert not room.profiling.is_due
        room.profiling.stepped()
    assert room.profiling.is_due
    assert room.profiling.end().num_steps == 3


def test_a_second_one_is_refused_and_the_first_goes_on() -> None:
    room = Room()
    room.profiling.begin(MESSAGE)
    refusal = room.profiling.begin(MESSAGE)
    assert refusal is not None
    assert refusal.code == "conflict"
    room.now_s += 2
    assert room.profiling.end().code == ""
    assert room.profiling.begin(MESSAGE) is None


def test_what_fails_is_answered_without_its_words_and_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = Room()
    room.recording.error = OSError("/secret/path: no space")
    room.profiling.begin(MESSAGE)
    answer = room.profiling.end()
    assert (answer.code, "/secret" in answer.message) == ("internal_error", False)
    assert "no space" in caplog.text
    assert room.engine.mark is no_mark

    def fails() -> FakeRecording:
        raise RuntimeError("no profiler here")

    profiling = Profiling(cast(Engine, room.engine), fails, lambda: 0.0)
    begun = profiling.begin(MESSAGE)
    assert begun is not None
    assert begun.code == "internal_error"
    assert not profiling.is_due
