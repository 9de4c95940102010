"""Streams in every phase: cold loads, quiet times, errors before and after the first byte, leaving."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from inference_server import errors
from inference_server.api.disconnect import CancelOnDisconnect, ClientDisconnected
from inference_server.api.sse import EventStream, EventWriter
from inference_server.worker.protocol import Progress
from tests.api.server import CHAT, COMPLETION, Connection, Server, events, run
from tests.generation.fakes import settle, until
from tests.model_manager import virtual_time

CHATS = "/v1/chat/completions"
STREAM = {**CHAT, "stream": True}


def freed(server: Server) -> bool:
    """Whether nothing of any request is left anywhere."""
    statuses = server.manager.snapshot()
    return (
        server.door.num_requests == 0
        and not any(worker.open for worker in server.launcher.workers)
        and all(status.num_leases == status.num_waiting == 0 for status in statuses)
        and server.sample("active_connections") == 0
    )


async def stream_in_virtual_time(
    produce: Any, connection: Connection | None = None, **options: float
) -> Connection:
    connection = connection or Connection("/", b"", {})
    await connection.receive()
    await EventStream(produce, **options)(connection.scope, connection.receive, connection.send)
    return connection


# ---------------------------------------------------------------- waiting


def test_headers_and_progress_go_out_while_the_model_loads(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        async with server.connected(CHATS, STREAM) as connection:
            await connection.until(": ")
            assert connection.status == 200
            await server.launcher.launching.wait()
            server.launcher.report(Progress(stage="load", fraction=0.43))
            await connection.until(": loading model … 43%\n\n")
            server.launcher.may_launch.set()
            await connection.until("[DONE]")
            chunks = events(connection.text)
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert freed(server)

    run(scenario())


def test_a_silent_stream_is_kept_alive_and_a_busy_one_is_left_alone() -> None:
    async def produce(writer: EventWriter) -> None:
        await writer.write(b"data: 1\n\n")
        for _ in range(20):
            await asyncio.sleep(1)
            await writer.write(b"data: x\n\n")
        await asyncio.sleep(40)
        await writer.write(b"data: 2\n\n")

    connection = virtual_time.run(stream_in_virtual_time(produce))
    assert connection.text.count(": keep-alive\n\n") == 2
    assert connection.text.index("keep-alive") > connection.text.rindex("data: x")
    assert connection.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_stream_whose_text_is_held_back_is_kept_alive() -> None:
    async def produce(writer: EventWriter) -> None:
        await writer.write(b"data: 1\n\n")
        for _ in range(40):  # tokens of a call, which a parser holds until it is whole
            await asyncio.sleep(1)
            await writer.write(b"")
        await writer.write(b"data: 2\n\n")

    connection = virtual_time.run(stream_in_virtual_time(produce))
    assert connection.text.count(": keep-alive\n\n") == 2
    assert all(message["body"] for message in connection.sent[1:-1])


def test_a_stream_without_any_event_is_a_whole_response() -> None:
    async def produce(writer: EventWriter) -> None:
        await writer.write(b"")

    connection = virtual_time.run(stream_in_virtual_time(produce))
    assert connection.status == 200
    assert connection.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_status_is_told_once_until_it_changes() -> None:
    async def produce(writer: EventWriter) -> None:
        for percent in (10, 10, 10, 20):
            writer.loading(Progress(stage="load", fraction=percent / 100))
            await asyncio.sleep(2)
        await writer.write(b"data: 1\n\n")

    text = virtual_time.run(stream_in_virtual_time(produce)).text
    assert text == ": loading model … 10%\n\n: loading model … 20%\n\ndata: 1\n\n"


def test_a_comment_never_cuts_into_an_event_even_with_a_slow_reader() -> None:
    connection = Connection("/", b"", {})

    async def produce(writer: EventWriter) -> None:
        writer.loading(Progress(stage="load"))
        connection.may_send.clear()
        asyncio.get_running_loop().call_later(30, connection.may_send.set)
        await asyncio.sleep(5)  # the comment is on its way and blocked
        await writer.write(b"data: 1\n\n")

    virtual_time.run(stream_in_virtual_time(produce, connection))
    assert [message["type"] for message in connection.sent].count("http.response.start") == 1
    assert connection.text == ": loading model …\n\ndata: 1\n\n"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("path", [CHATS, "/v1/completions"])
def test_what_fails_before_the_headers_is_an_ordinary_error(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        server.launcher.launch_error = errors.ModelLoadFailed("it does not load")
        body = {**(CHAT if path == CHATS else COMPLETION), "stream": True}
        response = await server.client.post(path, json=body)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "10"  # when it may be tried again
        assert response.json()["error"]["code"] == "model_load_failed"

    run(scenario())


def test_a_prompt_that_is_too_long_is_a_400_also_for_a_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        messages = [{"role": "user", "content": "x" * 400}]
        response = await Server(tmp_path).chat(stream=True, messages=messages)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")

    run(scenario())


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.WorkerDied("gone"), "worker_died"), (errors.InternalError("oops"), "internal_error")],
)
def test_an_error_after_the_first_byte_is_an_event_and_the_end(
    tmp_path: Path, error: errors.HelixFlowError, code: str
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).fail_after = (3, error)
        response = await server.chat(stream=True)
        *chunks, last = events(response.text)
        assert response.status_code == 200
        assert last["error"]["code"] == code
        assert len(chunks) == 4
        assert "[DONE]" not in response.text
        assert (await server.chat()).status_code == 500
        assert freed(server)

    run(scenario())


def test_an_unforeseen_fault_in_a_stream_tells_nothing_about_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).fail_after = (1, ValueError("/secret/path"))  # type: ignore[assignment]
        response = await server.chat(stream=True)
        assert events(response.text)[-1]["error"]["code"] == "internal_error"
        assert "secret" not in response.text
        whole = await server.chat()
        assert (whole.status_code, whole.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in whole.text

    run(scenario())
    assert "secret" in caplog.text


def test_a_deadline_in_a_stream_is_an_error_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).gate = asyncio.Semaphore(2)
        response = await server.chat(stream=True, timeout=0.05)
        assert events(response.text)[-1]["error"]["code"] == "deadline_exceeded"
        headers = {"x-request-timeout": "0.05"}
        whole = await server.client.post(CHATS, json=CHAT, headers=headers)
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert freed(server)

    run(scenario())


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "inf", "1e9"])
def test_a_deadline_header_that_is_no_duration_is_refused(tmp_path: Path, value: str) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).client.post(CHATS, json=CHAT, headers={"x-request-timeout": value})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "x-request-timeout")

    run(scenario())


# ---------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHATS, "/v1/completions"])
def test_leaving_during_a_load_frees_the_request_and_not_the_load(
    tmp_path: Path, path: str, stream: bool
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        other = asyncio.create_task(server.chat())
        body = {**(CHAT if path == CHATS else COMPLETION), "stream": stream}
        async with server.connected(path, body) as connection:
            await server.launcher.launching.wait()
            await until(lambda: server.door.num_requests == 2)
            connection.leave()
            await until(lambda: server.door.num_requests == 1)
        server.launcher.may_launch.set()
        assert (await other).status_code == 200
        assert freed(server)

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["one", ["one", "two"]])
def test_leaving_mid_answer_aborts_the_worker(tmp_path: Path, stream: bool, prompt: object) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        worker = await server.warm()
        worker.gate = asyncio.Semaphore(5)
        async with server.connected(
            "/v1/completions", {**COMPLETION, "prompt": prompt, "stream": stream}
        ) as connection:
            await until(worker.gate.locked)
            assert worker.open
            connection.leave()
            await settle()
            assert freed(server)
            assert len(worker.aborted) == (1 if prompt == "one" else 2)
        assert server.sample("helixflow_requests_cancelled_total", model="demo", stage="decode") == 1

    run(scenario())


def test_a_reader_that_stops_reading_and_leaves_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        await server.warm()
        async with server.connected(CHATS, STREAM) as connection:
            await connection.until("assistant")
            connection.may_send.clear()
            assert server.door.num_requests == 1
            connection.leave()
            await until(lambda: freed(server))

    run(scenario())


def test_two_hundred_clients_that_vanish_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, max_num_seqs=16, max_num_queued_reqs=200)
        (await server.warm()).gate = asyncio.Semaphore(300)
        bodies = [json.dumps({**CHAT, "stream": number % 2 == 0}).encode() for number in range(200)]
        connections = [Connection(CHATS, body, {}) for body in bodies]
        tasks = [
            asyncio.create_task(server.application(each.scope, each.receive, each.send))  # type: ignore[arg-type]
            for each in connections
        ]
        await until(lambda: server.door.num_requests == 200)
        for connection in connections:
            connection.leave()
        await asyncio.gather(*tasks)
        assert freed(server)

    run(scenario())


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def scenario() -> None:
        connection = Connection("/", b"", {})
        await connection.receive()

        async def work() -> None:
            async with CancelOnDisconnect(connection.receive):
                await asyncio.Event().wait()

        cancelled = asyncio.create_task(work())
        await settle()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        left = asyncio.create_task(work())
        await settle()
        connection.leave()
        with pytest.raises(ClientDisconnected):
            await left
        assert left.cancelling() == 0

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_cut_off_by_the_servers_end_is_told_so(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, loads=False)
        async with server.connected(CHATS, {**CHAT, "stream": stream}) as connection:
            await server.launcher.launching.wait()
            if stream:
                await connection.until(": ")
            server.door.announce_leaving()
            assert connection.task is not None
            connection.task.cancel()  # uvicorn waits for no request for ever
            with pytest.raises(asyncio.CancelledError):
                await connection.task
            assert connection.status == (200 if stream else 503)
            assert '"code":"shutting_down"' in connection.text
            assert not connection.sent[-1].get("more_body", False)

    run(scenario())


def test_leaving_while_the_body_is_sent_is_no_error_of_ours(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        connection = Connection(CHATS, b"", {})
        messages: list[Message] = [
            {"type": "http.request", "body": b'{"model":', "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Message:
            return messages.pop(0)

        await server.application(connection.scope, receive, connection.send)
        assert freed(server)

    run(scenario())
