"""Row 7, and HTTP by hand: slow clients, conflicting lengths, tiny chunks, pipelines, odd methods."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from tests.security.wire import chat, request, wire
from tests.server.running import RunningServer
from tests.server.test_faults import gauge, until

LENGTH = "Content-Length: 10"
OK = request(chat())


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# ---------------------------------------------------------------- slow clients


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/comp", OK[:60], OK[: OK.index(b"\r\n\r\n") + 2]])
def test_row_7_headers_that_do_not_end_are_cut_off(server: RunningServer, sent: bytes) -> None:
    with wire(server.port) as slow:
        slow.send(sent)
        answer = slow.answer() if sent else None
        assert slow.is_closed()
        if answer is not None:
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")


def test_row_7_a_byte_now_and_then_does_not_buy_time(server: RunningServer) -> None:
    with wire(server.port) as slow, contextlib.suppress(ConnectionError):
        started_s = time.monotonic()
        slow.send(OK[:60], piece=1, pause_s=0.2)  # 12 seconds, if it were let
    assert time.monotonic() - started_s < 8


def test_row_7_a_body_that_does_not_come_is_cut_off(server: RunningServer) -> None:
    with wire(server.port) as slow:
        slow.send(OK[:-5])
        answer = slow.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert slow.is_closed()


def test_row_7_many_slow_senders_harm_nobody(server: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(wire(server.port)).send(OK[: 30 + number % 100])
        for _ in range(20):
            response = server.client.post("/v1/chat/completions", json=chat())
            assert response.status_code == 200


def test_row_7_a_reader_that_stops_is_cut_off_and_its_request_ends(server: RunningServer) -> None:
    asked = request(chat(model="endless", stream=True, ignore_eos=True, max_tokens=30_000, n=8))
    with wire(server.port, receive_buffer=4096) as slow:
        slow.send(asked)
        until(lambda: gauge(server, "vllm:num_requests_running", "endless") >= 1, timeout_s=30)
        until(lambda: gauge(server, "vllm:num_requests_running", "endless") == 0, timeout_s=60)
        with contextlib.suppress(ConnectionError, TimeoutError):
            assert slow.is_closed()
    assert gauge(server, "vllm:kv_cache_usage_perc", "endless") == 0


# ---------------------------------------------------------------- what is no honest HTTP


@pytest.mark.parametrize(
    "head",
    [
        f"{LENGTH}\r\nContent-Length: 11",
        f"{LENGTH}\r\nTransfer-Encoding: chunked",
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 0x10",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip",
        "Bad Header: x",
        "X: a\rb",
        "X: a\x00b",
    ],
)
def test_conflicting_lengths_and_broken_headers_are_refused(server: RunningServer, head: str) -> None:
    with wire(server.port) as client:
        client.send(request(b"0123456789", headers=(head,), has_length=False))
        client.socket.settimeout(10)
        answer = client.answer()
        assert answer.status in (400, 413), answer
        assert answer.error["type"] == "invalid_request_error"
        assert client.is_closed()


@pytest.mark.parametrize(
    "line",
    [
        "POST /v1/chat/completions HTTP/9.9",
        "GE\x00T / HTTP/1.1",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "PRI * HTTP/2.0",
        "get / HTTP/1.1",
    ],
)
def test_what_is_no_request_line_is_refused(server: RunningServer, line: str) -> None:
    with wire(server.port) as client:
        client.send(line.encode("latin-1") + b"\r\nHost: 127.0.0.1\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert client.is_closed()


def test_a_body_in_chunks_of_six_bytes_is_a_body(server: RunningServer) -> None:
    body = json.dumps(chat()).encode()
    head = request(b"", headers=("Transfer-Encoding: chunked",), has_length=False)
    with wire(server.port) as client:
        client.send(head + chunked(body, 6), piece=6)
        assert client.answer().status == 200
        client.send(head + chunked(body, 6))
        assert client.answer().status == 200


@pytest.mark.parametrize("bad", [b"zz\r\n", b"-5\r\n", b"ffffffffffffffffff\r\n", b"5\r\nabcdefg"])
def test_broken_chunks_are_refused(server: RunningServer, bad: bytes) -> None:
    with wire(server.port) as client:
        client.send(request(b"", headers=("Transfer-Encoding: chunked",), has_length=False) + bad)
        answer = client.answer()
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert client.is_closed()


def test_endless_chunk_extensions_and_trailers_are_cut_off(server: RunningServer) -> None:
    head = request(b"", headers=("Transfer-Encoding: chunked",), has_length=False)
    for tail in (b"5;" + b"x" * 40_000, b"0\r\n" + b"X: y\r\n" * 8_000):
        with wire(server.port) as client:
            with contextlib.suppress(ConnectionError):
                client.send(head + tail, piece=1000)
            assert client.is_closed()


def test_a_trailer_is_no_header(server: RunningServer) -> None:
    body = json.dumps(chat()).encode()
    sent = request(b"", headers=("Transfer-Encoding: chunked",), has_length=False)
    sent += chunked(body, 100).removesuffix(b"\r\n") + b"Origin: http://evil.example\r\n\r\n"
    with wire(server.port) as client:
        client.send(sent)
        assert client.answer().status == 200


def test_requests_in_a_row_are_answered_in_their_order(server: RunningServer) -> None:
    with wire(server.port) as client:
        client.send(b"".join(request(chat(max_tokens=number)) for number in range(1, 9)))
        counts = [json.loads(client.answer().body)["usage"]["completion_tokens"] for _ in range(8)]
    assert counts == [1, 2, 3, 4, 5, 5, 5, 5]  # four and the end


def test_requests_in_a_row_without_end_are_not_kept(server: RunningServer) -> None:
    with wire(server.port) as client:
        with contextlib.suppress(ConnectionError):
            client.send(OK * 400)
        num_answers = 0
        with contextlib.suppress(ConnectionError, Exception):
            while client.answer().status == 200:
                num_answers += 1
        assert 1 <= num_answers < 400


def test_a_client_that_leaves_with_requests_in_a_row_leaves_nothing_behind(server: RunningServer) -> None:
    asked = request(chat(model="endless", ignore_eos=True, max_tokens=30_000))
    with wire(server.port) as client:
        client.send(asked * 5)
        until(lambda: gauge(server, "vllm:num_requests_running", "endless") >= 1, timeout_s=30)
    until(lambda: gauge(server, "vllm:num_requests_running", "endless") == 0)


def test_half_a_close_is_a_departure_or_an_answer_and_nothing_else(server: RunningServer) -> None:
    with wire(server.port) as client:
        client.send(OK)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed()


@pytest.mark.parametrize(
    "method", ["TRACE", "CONNECT", "PROPFIND", "PURGE", "M-SEARCH", "QUERY", "DELETE", "PUT"]
)
def test_odd_methods_are_refused(server: RunningServer, method: str) -> None:
    target = "127.0.0.1:80" if method == "CONNECT" else "/v1/chat/completions"
    with wire(server.port) as client:
        client.send(request(b"", method=method, target=target))
        assert client.answer(method).status in (400, 404, 405)


@pytest.mark.parametrize("piece", [7, 100_000])
@pytest.mark.parametrize("wish", ["h2c", "websocket"])
def test_a_wish_for_another_protocol_is_passed_over(server: RunningServer, wish: str, piece: int) -> None:
    """Java's own client asks for HTTP/2 in this way with each first request, bodies included."""
    headers = (f"Upgrade: {wish}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    with wire(server.port) as client:
        for _ in range(2):
            client.send(request(chat(), headers=headers) + request(chat()), piece=piece)
            assert [client.answer().status for _ in range(2)] == [200, 200]


def test_a_client_may_wait_for_leave_to_send(server: RunningServer) -> None:
    sent = request(chat(), headers=("Expect: 100-continue",))
    end = sent.index(b"\r\n\r\n") + 4
    with wire(server.port) as client:
        client.send(sent[:end])
        assert client.socket.recv(100).startswith(b"HTTP/1.1 100")
        client.send(sent[end:])
        assert client.answer().status == 200
