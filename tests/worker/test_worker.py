"""Requests to a real worker process, and what its death means for them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import uvloop

from inference_server import errors
from inference_server.types import EngineStats, FinishReason, GenerationRequest, SamplingParams
from tests.worker.children import is_alive, request, run, text_of, until, worker

ENDLESS = "output_tokens=1000000&step_ms=5"


async def several_requests_at_once(cache: Path) -> None:
    async with worker(cache, "reply=abc") as ready:
        texts = await asyncio.gather(*(text_of(ready, request(f"r{n}", n)) for n in range(1, 9)))
        assert texts == [("abc" * 3)[:n] for n in range(1, 9)]
        assert ready.num_requests == 0


def test_requests_are_answered_side_by_side(tmp_path: Path) -> None:
    run(several_requests_at_once(tmp_path))


def test_requests_are_answered_side_by_side_under_uvloop(tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(several_requests_at_once(tmp_path), 30))


def test_a_ready_worker_says_what_it_is(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path) as ready:
            assert ready.ready.device == "cpu"
            assert ready.ready.max_model_len == 4096
            assert ready.ready.kv_cache_tokens == 8192
            assert ready.ready.vocab_size == 260
            assert ready.pid != os.getpid()
            assert is_alive(ready.pid)

    run(check())


def test_the_last_delta_has_the_finish_reason_and_steps_are_reported(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path) as ready:
            seen: list[EngineStats] = []
            ready.on_step = seen.append
            deltas = [delta async for delta in ready.generate(request(max_tokens=4))]
            assert [delta.finish_reason for delta in deltas] == [None, None, None, FinishReason.LENGTH]
            assert len(seen) == 4
            assert ready.stats == seen[-1]

    run(check())


def test_leaving_a_stream_aborts_its_request_in_the_worker(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, ENDLESS) as ready:
            stream = ready.generate(request(max_tokens=4000))
            await anext(stream)
            other = asyncio.create_task(text_of(ready, request("other", 60)))
            await until(lambda: ready.stats.num_running == 2)
            await stream.aclose()
            await until(lambda: ready.stats.num_running == 1)
            assert ready.num_requests == 1
            assert len(await other) == 60

    run(check())


def test_a_cancelled_task_aborts_its_request_too(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, ENDLESS) as ready:
            task = asyncio.create_task(text_of(ready, request(max_tokens=4000)))
            await until(lambda: ready.stats.num_running == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ready.num_requests == 0
            assert len(await text_of(ready, request("again", 3))) == 3
            assert ready.stats.num_running == 0

    run(check())


@pytest.mark.parametrize(
    ("prompt", "error"),
    [((), errors.InvalidRequest), ((1, 999), errors.InvalidRequest), ((1,) * 5000, errors.ContextTooLong)],
)
def test_what_the_worker_refuses_reaches_the_caller_as_the_same_error(
    tmp_path: Path, prompt: tuple[int, ...], error: type[errors.HelixFlowError]
) -> None:
    async def check() -> None:
        async with worker(tmp_path) as ready:
            bad = GenerationRequest(
                request_id="bad", prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=4)
            )
            with pytest.raises(error):
                await text_of(ready, bad)
            assert len(await text_of(ready, request("good", 3))) == 3

    run(check())


def test_an_id_that_is_in_use_is_refused_and_its_owner_is_not_disturbed(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, ENDLESS) as ready:
            first = asyncio.create_task(text_of(ready, request("same", 20)))
            await until(lambda: ready.stats.num_running == 1)
            with pytest.raises(errors.InternalError, match="in use"):
                await text_of(ready, request("same", 20))
            assert len(await first) == 20

    run(check())


def test_a_failing_step_fails_its_request_and_the_worker_lives_on(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "fail_step=2") as ready:
            with pytest.raises(errors.InternalError, match="forward pass failed"):
                await text_of(ready, request())
            assert not ready.closed.done()
            assert len(await text_of(ready, request("again", 3))) == 3

    run(check())


# ---------------------------------------------------------------- sleep


def test_a_worker_sleeps_and_wakes_and_answers_as_before(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "reply=abc") as ready:
            assert ready.ready.can_sleep
            for _ in range(2):
                await ready.sleep()
                await ready.sleep()  # it sleeps already
                await ready.wake()
                await ready.wake()
                assert await text_of(ready, request(max_tokens=4)) == "abca"

    run(check())


def test_a_request_to_a_sleeping_worker_fails_and_it_can_still_be_woken(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "reply=abc") as ready:
            await ready.sleep()
            with pytest.raises(errors.InternalError, match="asleep"):
                await text_of(ready, request())
            await ready.wake()
            assert await text_of(ready, request(max_tokens=3)) == "abc"

    run(check())


def test_a_worker_with_a_request_does_not_sleep_and_the_request_goes_on(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, ENDLESS) as ready:
            running = asyncio.create_task(text_of(ready, request(max_tokens=30)))
            await until(lambda: ready.stats.num_running == 1)
            with pytest.raises(errors.SleepUnsupported, match="1 requests"):
                await ready.sleep()
            assert len(await running) == 30

    run(check())


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_an_aborted_request_does_not_keep_a_worker_awake(tmp_path: Path, max_in_flight: int) -> None:
    async def check() -> None:
        async with worker(tmp_path, f"{ENDLESS}&max_in_flight={max_in_flight}") as ready:
            stream = ready.generate(request(max_tokens=4000))
            await anext(stream)
            await stream.aclose()
            await ready.sleep()

    run(check())


def test_a_model_that_cannot_sleep_says_why(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "can_sleep=0") as ready:
            assert not ready.ready.can_sleep
            with pytest.raises(errors.SleepUnsupported, match="scripted to stay awake"):
                await ready.sleep()

    run(check())


@pytest.mark.parametrize(
    ("error", "kind"), [("oom", errors.InsufficientMemory), ("failed", errors.ModelLoadFailed)]
)
def test_a_wake_that_fails_says_why_and_may_be_tried_again(
    tmp_path: Path, error: str, kind: type[errors.HelixFlowError]
) -> None:
    async def check() -> None:
        async with worker(tmp_path, f"reply=abc&wake_error={error}") as ready:
            await ready.sleep()
            with pytest.raises(kind, match="scripted"):
                await ready.wake()
            await ready.wake()
            assert await text_of(ready, request(max_tokens=3)) == "abc"

    run(check())


@pytest.mark.parametrize("change", ["sleep", "wake"])
def test_a_worker_that_dies_meanwhile_tells_who_waits(tmp_path: Path, change: str) -> None:
    async def check() -> None:
        async with worker(tmp_path, f"{change}_ms=60000") as ready:
            if change == "wake":
                await ready.sleep()
            waiting = asyncio.create_task(getattr(ready, change)())
            await asyncio.sleep(0)
            os.kill(ready.pid, signal.SIGKILL)
            with pytest.raises(errors.WorkerDied):
                await waiting
            with pytest.raises(errors.WorkerDied):
                await ready.wake()

    run(check())


def test_a_sleep_that_hangs_is_killed(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "sleep_ms=60000", hang_timeout_s=1.2) as ready:
            with pytest.raises(errors.WorkerDied):
                await ready.sleep()
            assert "hung" in await ready.closed

    run(check())


def test_who_leaves_before_a_wake_is_done_does_not_confuse_the_next(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "reply=abc&wake_ms=300") as ready:
            await ready.sleep()
            waiting = asyncio.create_task(ready.wake())
            await asyncio.sleep(0)
            waiting.cancel()
            await ready.sleep()
            await ready.wake()
            assert await text_of(ready, request(max_tokens=3)) == "abc"

    run(check())


# ---------------------------------------------------------------- ends


def test_stop_ends_the_process_and_later_requests_are_told(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path) as ready:
            pid = ready.pid
            await ready.stop()
            assert not is_alive(pid)
            assert ready.closed.done()
            assert await ready.closed == "was stopped"
            with pytest.raises(errors.WorkerDied):
                await text_of(ready, request())

    run(check())


def test_stop_in_the_middle_of_a_request_tells_it(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, ENDLESS) as ready:
            stream = ready.generate(request(max_tokens=4000))
            await anext(stream)
            await ready.stop()
            with pytest.raises(errors.ShuttingDown):
                async for _ in stream:
                    pass

    run(check())


def test_a_killed_worker_fails_every_request_and_closed_resolves(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, ENDLESS) as ready:
            tasks = [asyncio.create_task(text_of(ready, request(f"r{n}", 4000))) for n in range(3)]
            await until(lambda: ready.stats.num_running == 3)
            os.kill(ready.pid, signal.SIGKILL)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, errors.WorkerDied) for result in results), results
            await ready.closed
            assert not is_alive(ready.pid)
            assert ready.num_requests == 0

    run(check())


def test_a_worker_that_crashes_in_a_step_fails_its_request(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "crash_step=3") as ready:
            stream = ready.generate(request())
            await anext(stream)
            await anext(stream)
            with pytest.raises(errors.WorkerDied):
                await anext(stream)
            await ready.closed

    run(check())


def test_a_step_that_hangs_is_killed(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, "hang_step=2", hang_timeout_s=1.2) as ready:
            with pytest.raises(errors.WorkerDied):
                await text_of(ready, request())
            assert "hung" in await ready.closed
            assert not is_alive(ready.pid)

    run(check())


def test_a_worker_that_is_frozen_is_killed(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, hang_timeout_s=1.5) as ready:
            os.kill(ready.pid, signal.SIGSTOP)
            assert "no sign of life" in await ready.closed

    run(check())


def test_an_idle_worker_is_never_taken_for_hung(tmp_path: Path) -> None:
    async def check() -> None:
        async with worker(tmp_path, hang_timeout_s=0.1) as ready:
            await asyncio.sleep(2.2)
            assert not ready.closed.done()
            assert len(await text_of(ready, request(max_tokens=3))) == 3

    run(check())
