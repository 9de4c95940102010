"""One request through admission, lease, worker and text, and every way in which it may end early."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inference_server import errors
from inference_server.config.catalog import ModelSpec, SamplingDefaults
from inference_server.generation import grammars
from inference_server.generation.door import Door
from inference_server.generation.requests import (
    ChatPrompt,
    Prompt,
    SamplingOptions,
    TextPrompt,
    TextRequest,
    TokenPrompt,
)
from inference_server.generation.service import Generation
from inference_server.types import FinishReason, GrammarSpec, Usage
from inference_server.worker.protocol import Progress
from tests.generation.fakes import House, settle, until

HI = ChatPrompt(({"role": "user", "content": "hi"},))
HI_TOKENS = len("<|im_start|>") and 1 + len("user\nhi") + 1 + 1 + 1 + len("assistant\n")


def request(prompt: Prompt = HI, *more: Prompt, model: str = "demo", **fields: object) -> TextRequest:
    return TextRequest(request_id="r1", model=model, prompts=(prompt, *more), **fields)  # type: ignore[arg-type]


async def texts(generation: Generation) -> dict[int, tuple[str, FinishReason | None]]:
    answers: dict[int, tuple[str, FinishReason | None]] = {}
    async for delta in generation.deltas():
        text, reason = answers.get(delta.index, ("", None))
        assert reason is None, "nothing comes after the end"
        answers[delta.index] = (text + delta.text, delta.finish_reason)
    return answers


async def answer(house: House, wanted: TextRequest) -> tuple[str, FinishReason | None, Usage]:
    async with house.service.open(wanted) as generation:
        text, reason = (await texts(generation))[0]
        return text, reason, generation.usage


def test_a_chat_is_answered_with_its_usage(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        text, reason, usage = await answer(house, request())
        assert (text, reason) == ("Hello, world.", FinishReason.STOP)
        assert usage == Usage(prompt_tokens=HI_TOKENS, completion_tokens=14, cached_tokens=2)
        assert house.worker.seen[0].sampling.max_tokens == 256 - HI_TOKENS
        assert house.door.num_requests == 0

    asyncio.run(scenario())


def test_the_token_that_ends_an_answer_is_no_text_whatever_it_spells(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        worker = await house.warm()
        worker.reply = b"ab!"
        sampling = SamplingOptions(max_tokens=3, stop_token_ids=(ord("!"),))
        worker._deltas = lambda request: [  # type: ignore[method-assign]
            delta if delta.finish_reason is None else _stopped(delta) for delta in _plain(worker, request)
        ]
        text, reason, usage = await answer(house, request(sampling=sampling))
        assert (text, reason, usage.completion_tokens) == ("ab", FinishReason.STOP, 3)

    from inference_server.types import GenerationRequest, TokenDelta
    from tests.generation.fakes import FakeWorker

    def _plain(worker: FakeWorker, wanted: GenerationRequest) -> list[TokenDelta]:
        return FakeWorker._deltas(worker, wanted)

    def _stopped(delta: TokenDelta) -> TokenDelta:
        return TokenDelta(
            request_id=delta.request_id, token_ids=delta.token_ids, finish_reason=FinishReason.STOP
        )

    asyncio.run(scenario())


def test_a_stop_string_ends_the_answer_and_aborts_the_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        text, reason, usage = await answer(house, request(stop=("wor",)))
        assert (text, reason) == ("Hello, ", FinishReason.STOP)
        assert usage.completion_tokens == len("Hello, wor")
        assert house.worker.aborted == ["r1-0"]

    asyncio.run(scenario())


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        text, reason, _ = await answer(house, request(stop=(".END",)))
        assert (text, reason) == ("Hello, world.", FinishReason.STOP)

    asyncio.run(scenario())


def test_an_answer_cut_inside_a_character_is_length_and_keeps_what_there_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        (await house.warm()).reply = "aé".encode()
        text, reason, _ = await answer(house, request(sampling=SamplingOptions(max_tokens=2)))
        assert (text, reason) == ("a�", FinishReason.LENGTH)

    asyncio.run(scenario())


def test_several_prompts_are_answered_side_by_side(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        wanted = request(TextPrompt("one"), TokenPrompt((1, 2, 3, 4)), sampling=SamplingOptions(max_tokens=5))
        async with house.service.open(wanted) as generation:
            assert house.door.num_requests == 2
            answers = await texts(generation)
        assert answers == {0: ("Hello", FinishReason.LENGTH), 1: ("Hello", FinishReason.LENGTH)}
        assert generation.usage == Usage(prompt_tokens=7, completion_tokens=10, cached_tokens=4)
        assert {seen.request_id for seen in house.worker.seen} == {"r1-0", "r1-1"}

    asyncio.run(scenario())


def test_when_one_of_several_answers_fails_all_are_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        (await house.warm()).fail_after = (3, errors.WorkerDied("gone"))
        with pytest.raises(errors.WorkerDied):
            async with house.service.open(request(TextPrompt("a"), TextPrompt("b"))) as generation:
                await texts(generation)
        assert not house.worker.open

    asyncio.run(scenario())


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (request(model="nope"), errors.UnknownModel),
        (request(model="../demo"), errors.UnknownModel),
        (request(model="embedder"), errors.UnsupportedParameter),
        (request(TextPrompt("")), errors.InvalidRequest),
        (request(TokenPrompt(())), errors.InvalidRequest),
        (request(TokenPrompt((260,))), errors.InvalidRequest),
        (request(TextPrompt("x" * 256)), errors.ContextTooLong),
        (request(sampling=SamplingOptions(max_tokens=1000)), errors.ContextTooLong),
        (request(sampling=SamplingOptions(max_tokens=1, min_tokens=2)), errors.InvalidRequest),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_what_cannot_be_served_is_refused_warm_or_cold(
    tmp_path: Path, wanted: TextRequest, error: type[errors.HelixFlowError], warm: bool
) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        if warm:
            await house.warm()
        with pytest.raises(error):
            await answer(house, wanted)
        assert house.door.num_requests == 0
        assert all(not worker.seen for worker in house.launcher.workers)

    asyncio.run(scenario())


def test_a_prompt_that_is_too_long_does_not_load_a_model_whose_limits_are_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        await house.warm()
        await house.manager.unload("demo")
        with pytest.raises(errors.ContextTooLong):
            await answer(house, request(TextPrompt("x" * 500)))
        assert len(house.launcher.workers) == 1

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_also_while_the_model_loads(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path, loads=False, max_num_seqs=2, max_num_queued_reqs=3)
        waiting = [asyncio.create_task(answer(house, request())) for _ in range(5)]
        await settle()
        with pytest.raises(errors.QueueFull) as caught:
            await answer(house, request())
        assert caught.value.retry_after_s
        assert house.sample("helixflow_requests_rejected_total", model="demo", reason="queue_full") == 1
        assert house.door.num_in_progress("demo") == 5
        house.launcher.may_launch.set()
        assert {text for text, _, _ in await asyncio.gather(*waiting)} == {"Hello, world."}
        assert house.door.num_requests == 0

    asyncio.run(scenario())


def test_a_draining_service_refuses_new_requests_and_finishes_old_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        worker = await house.warm()
        worker.gate = asyncio.Semaphore(0)
        running = asyncio.create_task(answer(house, request()))
        await until(lambda: worker.open)
        house.door.shut_down()
        assert house.door.is_draining
        with pytest.raises(errors.ShuttingDown):
            await answer(house, request())
        for _ in range(14):
            worker.gate.release()
        assert (await running)[0] == "Hello, world."

    asyncio.run(scenario())


def test_the_time_to_stop_runs_from_the_announcement_and_past_its_end(tmp_path: Path) -> None:
    house, now_s = House(tmp_path, shutdown_timeout=60.0), 1000.0
    door = Door(house.manager, house.settings, house.metrics, clock=lambda: now_s)
    now_s += 5
    assert door.shutdown_left_s == 60
    door.announce_leaving()
    now_s += 10
    door.shut_down()
    assert door.shutdown_left_s == 50
    now_s += 70
    assert door.shutdown_left_s == -20


def test_whoever_has_passed_the_door_is_waited_for_before_the_manager_shuts(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        await house.warm()
        assert await house.door.emptied(0)
        entered, may_go_on = asyncio.Event(), asyncio.Event()

        async def visit() -> None:
            async with house.door.admitted("demo", 1, None) as visit:
                entered.set()
                await may_go_on.wait()  # its prompt is being encoded
                async with house.door.leased(visit, keep_alive_s=None):
                    pass

        inside = asyncio.create_task(visit())
        await entered.wait()
        house.door.shut_down()
        assert not await house.door.emptied(0)
        waiting = asyncio.create_task(house.door.emptied(10))
        await settle()
        assert not waiting.done()
        may_go_on.set()
        await inside
        assert await waiting
        assert await house.manager.drain(0)

    asyncio.run(scenario())


def test_a_visit_that_fails_leaves_the_house_empty(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        with pytest.raises(errors.InvalidRequest):
            async with house.door.admitted("demo", 1, None):
                raise errors.InvalidRequest("it cannot be served")
        assert await house.door.emptied(0)

    asyncio.run(scenario())


def test_a_failed_load_is_told_to_all_who_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        house.launcher.launch_error = errors.ModelLoadFailed("no")
        results = await asyncio.gather(*(answer(house, request()) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [errors.ModelLoadFailed] * 3

    asyncio.run(scenario())


# ---------------------------------------------------------------- leaving early


@asynccontextmanager
async def leaving(house: House) -> AsyncIterator[asyncio.Task[object]]:
    """A request under way that is cancelled at the end of the block, as when its client leaves."""
    task: asyncio.Task[object] = asyncio.create_task(answer(house, request()))
    yield task
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert house.door.num_requests == 0
    assert all(status.num_leases == 0 and status.num_waiting == 0 for status in house.manager.snapshot())


def test_leaving_while_the_model_loads_frees_the_place_but_not_the_load(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path, loads=False)
        other = asyncio.create_task(answer(house, request()))
        async with leaving(house):
            await until(lambda: house.door.num_requests == 2)
            other.cancel()
            await settle()
        assert house.sample("helixflow_requests_cancelled_total", model="demo", stage="queue") == 2

    asyncio.run(scenario())


def test_leaving_mid_answer_aborts_the_worker_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        worker = await house.warm()
        worker.gate = asyncio.Semaphore(3)
        async with leaving(house):
            await until(lambda: house.sample("vllm:generation_tokens_total", model_name="demo") == 3)
            assert worker.open == {"r1-0"}
        assert worker.aborted == ["r1-0"]
        assert house.sample("helixflow_requests_cancelled_total", model="demo", stage="decode") == 1

    asyncio.run(scenario())


def test_a_bug_is_counted_as_a_failure_of_ours(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        with pytest.raises(KeyError):
            async with house.door.admitted("demo", 1, None):
                raise KeyError("nobody raises this on purpose")
        assert house.sample("helixflow_requests_total", model="demo", outcome="failed") == 1
        assert house.sample("helixflow_requests_total", model="demo", outcome="ok") == 0
        assert house.sample("helixflow_requests_rejected_total", model="demo", reason="internal_error") == 1

    asyncio.run(scenario())


def test_leaving_the_block_without_reading_frees_everything(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        async with house.service.open(request()) as generation:
            deltas = generation.deltas()
            await anext(deltas)
            await deltas.aclose()
        assert house.worker.aborted == ["r1-0"]
        assert house.door.num_requests == 0

    asyncio.run(scenario())


# ---------------------------------------------------------------- deadlines and faults


@pytest.mark.parametrize("loads", [False, True])
def test_a_deadline_ends_a_request_in_load_or_generation(tmp_path: Path, loads: bool) -> None:
    async def scenario() -> None:
        house = House(tmp_path, loads=loads)
        if loads:
            (await house.warm()).gate = asyncio.Semaphore(2)
        expected = errors.DeadlineExceeded if loads else errors.ModelLoading
        with pytest.raises(expected) as caught:
            await answer(house, request(timeout_s=0.05))
        assert loads or caught.value.retry_after_s  # who waited for the model is told when to come again
        assert house.door.num_requests == 0
        assert not any(worker.open for worker in house.launcher.workers)

    asyncio.run(scenario())


def test_a_client_may_shorten_the_servers_deadline_but_not_lengthen_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path, request_timeout=0.05)
        (await house.warm()).gate = asyncio.Semaphore(0)
        with pytest.raises(errors.DeadlineExceeded, match=r"0\.05 s"):
            await answer(house, request(timeout_s=1000.0))

    asyncio.run(scenario())


def test_a_worker_that_dies_fails_its_requests_with_a_typed_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        (await house.warm()).fail_after = (4, errors.WorkerDied("gone"))
        with pytest.raises(errors.WorkerDied):
            await answer(house, request())
        assert house.sample("helixflow_requests_rejected_total", model="demo", reason="worker_died") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("reason", [FinishReason.ABORT])
def test_an_abort_that_nobody_asked_for_is_an_error_not_an_answer(
    tmp_path: Path, reason: FinishReason
) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        (await house.warm()).last_reason = reason
        with pytest.raises(errors.InternalError):
            await answer(house, request())

    asyncio.run(scenario())


# ---------------------------------------------------------------- what is handed on and measured


def test_the_models_defaults_reach_the_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = ModelSpec(name="demo", source="scripted", defaults=SamplingDefaults(temperature=0.25, top_k=7))
        house = House(tmp_path, demo=spec)
        await answer(house, request(sampling=SamplingOptions(top_k=3)))
        sampling = house.worker.seen[0].sampling
        assert (sampling.temperature, sampling.top_k) == (0.25, 3)

    asyncio.run(scenario())


def test_progress_of_a_load_is_heard(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path, loads=False)
        heard: list[Progress] = []

        async def run() -> None:
            async with house.service.open(request(), heard.append):
                pass

        task = asyncio.create_task(run())
        await house.launcher.launching.wait()
        house.launcher.report(Progress(stage="load", fraction=0.43))
        house.launcher.may_launch.set()
        await task
        assert Progress(stage="load", fraction=0.43) in heard

    asyncio.run(scenario())


def test_a_finished_request_is_measured(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        await answer(house, request(model="gpt-3.5-turbo"))  # the alias is no label
        assert house.sample("vllm:prompt_tokens_total", model_name="demo") == HI_TOKENS
        assert house.sample("vllm:generation_tokens_total", model_name="demo") == 14
        assert house.sample("vllm:request_success_total", model_name="demo", finished_reason="stop") == 1
        for name in (
            "time_to_first_token",
            "e2e_request_latency",
            "request_queue_time",
            "request_decode_time",
        ):
            assert house.sample(f"vllm:{name}_seconds_count", model_name="demo") == 1
        assert house.sample("vllm:inter_token_latency_seconds_count", model_name="demo") == 13

    asyncio.run(scenario())


def test_the_fingerprint_is_that_of_the_model_and_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        prints = []
        for model in ("demo", "gpt-3.5-turbo", "other"):
            async with house.service.open(request(model=model)) as generation:
                prints.append(generation.fingerprint)
        assert prints[0] == prints[1] != prints[2]

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_for_grammars_and_prompts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    slow = GrammarSpec("regex", "a" * 5000, "guided_regex")

    def check(spec: GrammarSpec) -> None:
        assert spec != slow or held.wait(30)

    async def never(*args: object) -> tuple[int, ...]:
        await asyncio.Event().wait()
        return ()

    async def scenario() -> None:
        house = House(tmp_path)
        await house.warm()
        late = [
            asyncio.create_task(
                answer(house, request(sampling=SamplingOptions(grammar=slow), timeout_s=0.05))
            )
            for _ in range(3)
        ]
        quick = SamplingOptions(grammar=GrammarSpec("regex", "b", "guided_regex"))
        assert (await answer(house, request(sampling=quick)))[0] == "Hello, world."
        for task in late:
            with pytest.raises(errors.DeadlineExceeded):
                await task
        held.set()
        monkeypatch.setattr(house.services.text._templates, "encode", never)
        with pytest.raises(errors.DeadlineExceeded):
            await answer(house, request(timeout_s=0.05))
        assert house.door.num_requests == 0
        assert (
            house.sample("helixflow_requests_rejected_total", model="demo", reason="deadline_exceeded") == 4
        )

    monkeypatch.setattr(grammars, "check_grammar", check)
    try:
        asyncio.run(scenario())
    finally:
        held.set()
