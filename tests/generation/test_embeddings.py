"""One request for embeddings through admission, lease and worker, and every way in which it may end early."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from inference_server import errors
from inference_server.access.gate import Gate
from inference_server.access.keys import Key, digest_of
from inference_server.generation.embeddings import EmbeddingJob, Embeddings
from inference_server.generation.requests import TextPrompt, TextRequest
from inference_server.tracing.timeline import Timeline
from tests.generation.fakes import House, settle, until


def job(*inputs: str | tuple[int, ...], model: str = "embedder", **fields: object) -> EmbeddingJob:
    return EmbeddingJob(request_id="e1", model=model, inputs=inputs, **fields)  # type: ignore[arg-type]


def embed(house: House, wanted: EmbeddingJob) -> asyncio.Task[Embeddings]:
    return asyncio.create_task(house.services.embeddings.embed(wanted))


def test_texts_and_token_ids_get_their_vectors_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        answer = await embed(house, job("abc", (120, 121), "abc"))
        assert house.worker.embedded[0].inputs == ((97, 98, 99), (120, 121), (97, 98, 99))
        first, second, third = (struct.unpack("<16f", vector) for vector in answer.vectors)
        assert first == third != second
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 0)
        assert house.door.num_requests == 0
        assert house.sample("vllm:prompt_tokens_total", model_name="embedder") == 8
        assert house.sample("vllm:request_success_total", model_name="embedder", finished_reason="stop") == 1

    asyncio.run(scenario())


def test_a_model_that_has_been_loaded_once_refuses_before_it_is_loaded_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        await embed(house, job("abc"))
        await house.manager.unload("embedder")
        with pytest.raises(errors.ContextTooLong, match="input 1 has 40000 tokens"):
            await embed(house, job("abc", "a" * 40000))
        assert len(house.launcher.workers) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("max_tokens", "kept"), [(None, 32768), (5, 5), (99999, 32768)], ids=["the model's", "own", "too many"]
)
def test_long_inputs_are_cut_on_request(tmp_path: Path, max_tokens: int | None, kept: int) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        wanted = job("a" * 40000, (98,) * 40000, "ab", truncates=True, max_tokens=max_tokens)
        answer = await embed(house, wanted)
        assert list(map(len, house.worker.embedded[0].inputs)) == [kept, kept, 2]
        assert answer.usage.prompt_tokens == 2 * kept + 2

    asyncio.run(scenario())


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        with pytest.raises(errors.InvalidRequest, match="between 0 and 259"):
            await embed(house, job((1, 260)))
        assert house.door.num_requests == 0
        assert (
            house.sample("helixflow_requests_rejected_total", model="embedder", reason="invalid_value") == 1
        )

    asyncio.run(scenario())


def test_each_model_refuses_what_it_is_not_for_without_being_loaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        text = TextRequest(request_id="r", model="embedder", prompts=(TextPrompt("a"),))
        with pytest.raises(errors.UnsupportedParameter, match="use /v1/embeddings"):
            async with house.service.open(text):
                pass
        await house.warm()
        with pytest.raises(errors.UnsupportedParameter, match="it generates text"):
            await embed(house, job("a", model="demo"))
        assert len(house.launcher.workers) == 1

    asyncio.run(scenario())


def test_a_request_has_a_place_for_each_batch_of_its_inputs(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path, loads=False, max_num_seqs=2, max_num_queued_reqs=1)
        running = embed(house, job("a", "b", "c", "d", "e"))
        await settle()
        assert house.door.num_requests == 3
        with pytest.raises(errors.QueueFull):
            await embed(house, job("f"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert house.door.num_requests == 0

    asyncio.run(scenario())


def test_a_client_that_leaves_and_a_passed_deadline_free_everything(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        await house.manager.load("embedder")
        house.worker.gate = asyncio.Semaphore(0)
        leaving = embed(house, job("a"))
        await until(lambda: house.worker.open)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not house.worker.open
        with pytest.raises(errors.DeadlineExceeded):
            await embed(house, job("a", timeout_s=0.01))
        assert not house.worker.open
        assert house.manager.status("embedder").num_leases == 0
        assert house.door.num_requests == 0

    asyncio.run(scenario())


def test_a_fault_in_the_worker_is_the_requests_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        await house.manager.load("embedder")
        house.worker.fail_after = (0, errors.InternalError("broken"))
        with pytest.raises(errors.InternalError):
            await embed(house, job("a"))
        house.worker.fail_after = None
        assert (await embed(house, job("a"))).vectors

    asyncio.run(scenario())


def test_a_deadline_ends_the_encoding_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object) -> list[tuple[int, ...]]:
        await asyncio.Event().wait()
        return []

    async def scenario() -> None:
        house = House(tmp_path)
        await house.manager.load("embedder")
        monkeypatch.setattr(house.services.embeddings._templates, "encode_texts", never)
        with pytest.raises(errors.DeadlineExceeded):
            await embed(house, job("a", timeout_s=0.05))
        assert house.door.num_requests == 0

    asyncio.run(scenario())


def test_inputs_wait_within_the_bound_in_tokens(tmp_path: Path) -> None:
    async def scenario() -> None:
        house = House(tmp_path, max_queued_tokens=10)
        with pytest.raises(errors.ContextTooLong):
            await embed(house, job("a" * 40_000))
        worker = house.worker
        worker.gate = asyncio.Semaphore(0)
        alone = embed(house, job("a" * 200))  # never too long for an empty queue
        await until(lambda: worker.open)
        with pytest.raises(errors.QueueFull, match="prompts of 200 tokens wait"):
            await embed(house, job("b"))
        worker.gate.release()
        await alone
        worker.gate = None
        assert (await embed(house, job("b"))).vectors

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["well", "late", "left", "broken"])
def test_what_the_worker_was_given_costs_its_key_whatever_the_end(tmp_path: Path, end: str) -> None:
    async def scenario() -> None:
        house = House(tmp_path)
        await house.manager.load("embedder")
        caller = Gate([Key("a", digest_of(b"a"), tokens_per_minute=1000)], clock=lambda: 0.0).caller(b"a")
        assert caller is not None
        timeline = Timeline()
        house.worker.gate = asyncio.Semaphore(1 if end in ("well", "broken") else 0)
        house.worker.fail_after = (0, errors.InternalError("broken")) if end == "broken" else None
        timeout_s = 0.05 if end == "late" else None
        task = embed(house, job("a" * 300, caller=caller, timeline=timeline, timeout_s=timeout_s))
        if end == "left":
            await until(lambda: house.worker.open)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert dict(caller.headers())[b"x-ratelimit-remaining-tokens"] == b"700"
        assert timeline.num_prompt_tokens == 300

    asyncio.run(scenario())
