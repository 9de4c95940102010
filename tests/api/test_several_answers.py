"""`n` and `best_of`: several answers to one prompt, told apart, counted as OpenAI counts them."""

from __future__ import annotations

from pathlib import Path

from inference_server.types import GenerationRequest
from tests.api.server import Server, events, run
from tests.generation.fakes import FakeWorker

HELLO = "Hello, world."


def seeds(worker: FakeWorker) -> list[int | None]:
    """Of the answers that were asked for since the last call, in order."""
    seen, worker.seen = worker.seen, []
    return [request.sampling.seed for request in sorted(seen, key=_number)]


def _number(request: GenerationRequest) -> int:
    return int(request.request_id.rpartition("-")[2])


def test_n_answers_have_indices_and_their_prompt_is_counted_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).chat(n=3)).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert {choice["message"]["content"] for choice in body["choices"]} == {HELLO}
        assert body["usage"] == {
            "prompt_tokens": 21,
            "completion_tokens": 3 * 14,
            "total_tokens": 21 + 3 * 14,
            "prompt_tokens_details": {"cached_tokens": 2},
        }

    run(scenario())


def test_each_answer_has_its_own_seed_and_each_prompt_the_same_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        await server.complete(prompt=["a", "b"], n=3, seed=10)
        assert seeds(server.worker) == [10, 11, 12, 10, 11, 12]
        await server.complete(n=2, seed=-1)
        assert seeds(server.worker) == [2**64 - 1, 0]
        await server.complete(n=2)
        assert seeds(server.worker) == [None, None]

    run(scenario())


def test_a_stream_of_n_answers_begins_each_ends_each_and_is_done_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).chat(n=2, stream=True, stream_options={"include_usage": True})
        *chunks, usage, done = events(response.text)
        assert done == "[DONE]"
        assert usage["usage"]["completion_tokens"] == 28
        assert [chunk["choices"][0]["index"] for chunk in chunks[:2]] == [0, 1]
        assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks[:2])
        for index in (0, 1):
            own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
            assert "".join(choice["delta"].get("content", "") for choice in own) == HELLO
            assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]

    run(scenario())


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).complete(prompt=["one", "two"], n=2, echo=True, max_tokens=1)).json()
        assert [(c["index"], c["text"]) for c in body["choices"]] == [
            (0, "oneH"), (1, "oneH"), (2, "twoH"), (3, "twoH"),
        ]  # fmt: skip
        assert body["usage"]["prompt_tokens"] == 6

    run(scenario())


def test_every_answer_takes_a_place_in_the_queue(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, max_num_seqs=2, max_num_queued_reqs=1)
        response = await server.chat(n=4)
        assert (response.status_code, "at most 3 at once" in response.text) == (400, True)
        assert (await server.chat(n=3)).status_code == 200
        assert (await server.complete(n=1, best_of=4)).status_code == 400
        with server.door._admission.admitted("demo"):
            response = await server.chat(n=3)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")

    run(scenario())


def test_the_likeliest_of_best_of_are_given_and_all_are_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        worker = await server.warm()

        def reply(request: GenerationRequest) -> bytes:  # the larger the seed, the likelier
            return bytes([ord("0") + (request.sampling.seed or 0)])

        worker.reply_to = reply
        body = (await server.complete(n=2, best_of=5, seed=1)).json()
        assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "5"), (1, "4")]
        assert all(choice["logprobs"] is None for choice in body["choices"])
        assert body["usage"]["completion_tokens"] == 5 * 2

    run(scenario())


def test_best_of_is_refused_in_a_stream_and_below_n(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        for fields in ({"best_of": 2, "stream": True}, {"best_of": 1, "n": 2}):
            response = await server.complete(**fields)
            assert (response.status_code, response.json()["error"]["param"]) == (400, "best_of")
        assert (await server.complete(best_of=1, stream=True)).status_code == 200

    run(scenario())
