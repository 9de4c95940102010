"""Rows 1, 2, 3, 6, 11, 15 and 17: what one request may hold, on a real server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.security.wire import chat, request, wire
from tests.server.running import RunningServer

NUMBERS = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "max_tokens", "top_k", "n", "seed", "top_logprobs", "min_tokens", "timeout", "priority",
)  # fmt: skip
ODD_NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "9223372036854775808",
    "-9223372036854775809",
    "1e-400e1",
)


def post(
    server: RunningServer, body: dict[str, Any] | str | bytes, path: str = "/v1/chat/completions"
) -> httpx.Response:
    content = json.dumps(body) if isinstance(body, dict) else body
    return server.client.post(path, content=content, headers={"content-type": "application/json"})


def refused(response: httpx.Response, status: int = 400, param: str | None = None) -> dict[str, Any]:
    """The error in the envelope, with the right status and field."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 1000
    assert param is None or (error["param"] or "").startswith(param), error
    return error


@pytest.mark.parametrize("field", ["n", "best_of"])
@pytest.mark.parametrize("value", [9, 1000, 2**31, 10**30, -1, 0])
def test_row_1_too_many_answers_are_refused_unmade(server: RunningServer, field: str, value: int) -> None:
    refused(post(server, {"model": "m", "prompt": "a", field: value}, "/v1/completions"))


@pytest.mark.parametrize("field", NUMBERS)
def test_row_2_numbers_that_are_none_are_refused(server: RunningServer, field: str) -> None:
    for number in ODD_NUMBERS:
        body = json.dumps(chat())[:-1] + f', "{field}": {number}}}'
        response = post(server, body)
        is_zero_to_the_parser = response.status_code == 200 and field == "seed"
        assert response.status_code == 400 or is_zero_to_the_parser, (number, response.text)


def test_row_2_numbers_deep_in_a_request_are_refused_too(server: RunningServer) -> None:
    for number in ("NaN", "1e400", "101", "-101"):
        body = json.dumps(chat())[:-1] + f', "logit_bias": {{"5": {number}}}}}'
        refused(post(server, body))


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{{ messages }}"},
        {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"},
        {"chat_template_kwargs": {"messages": []}},
        {"chat_template_kwargs": {"tools": [{"a": 1}]}},
        {"chat_template_kwargs": {"a": {"__class__": 1}}},
        {"chat_template_kwargs": {"chat_template": "x"}},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"raise_exception": "x"}},
    ],
)  # fmt: skip
def test_row_3_templates_and_their_dangerous_variables_are_refused(
    server: RunningServer, fields: dict[str, Any]
) -> None:
    refused(post(server, chat(**fields)), param=next(iter(fields)))


SIZES: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "a"}] * 2049},
    "stop": {"stop": ["a"] * 17},
    "logit_bias": {"logit_bias": {str(number): 1 for number in range(1025)}},
    "top_logprobs": {"logprobs": True, "top_logprobs": 21},
    "tools": {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(1000)]},
    "stop_token_ids": {"stop_token_ids": list(range(100_000))},
}


@pytest.mark.parametrize("field", SIZES)
def test_row_6_fields_that_are_too_large_are_refused(server: RunningServer, field: str) -> None:
    refused(post(server, chat(**SIZES[field])), param=field)


def test_row_6_a_body_that_is_too_large_is_a_413_before_it_is_read(server: RunningServer) -> None:
    with wire(server.port) as client:  # a length that is only said
        client.send(request(b"", headers=("Content-Length: 99999999999",), has_length=False))
        answer = client.answer()
        assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")
    with wire(server.port) as client:  # and one that nobody says
        client.send(request(b"", headers=("Transfer-Encoding: chunked",), has_length=False))
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            for _ in range(64):
                client.send(piece)
        except ConnectionError:
            return
        assert client.answer().status == 413


@pytest.mark.parametrize("lines", [("X: " + "a" * 20_000,), tuple(f"X{i}: {'a' * 200}" for i in range(200))])
def test_row_6_headers_that_are_too_large_are_a_431(server: RunningServer, lines: tuple[str, ...]) -> None:
    with wire(server.port) as client:
        client.send(request(chat(), headers=lines))
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


def test_row_6_a_target_that_is_too_long_is_a_431(server: RunningServer) -> None:
    with wire(server.port) as client:
        client.send(request(b"", method="GET", target="/v1/models?" + "a" * 20_000))
        assert client.answer().status == 431


@pytest.mark.parametrize("depth", [65, 1000, 100_000])
def test_row_6_json_that_is_too_deep_is_refused(server: RunningServer, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        inner = opening * depth + "1" + closing * depth
        refused(post(server, json.dumps(chat())[:-1] + f', "metadata": {inner}}}'))


NAMES = (
    "../../etc/passwd", "/etc/passwd", "m\x00", "m/../m", "..", ".", "m%00", "C:\\m", "ｍ", "M", "m ",
    "\u202em",    "m\r\nX-Injected: 1", "a" * 100_000, "🦙", "scripted:", "pypi:x==1/y", "hf:gpt2", "file:///etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_row_11_a_models_name_is_a_key_and_never_a_path(server: RunningServer, name: str) -> None:
    response = post(server, chat(model=name))
    assert response.status_code in (400, 404), response.text
    assert "x-injected" not in response.headers
    assert not any(line.startswith("X-Injected") for line in server.log.splitlines())
    assert "\x00" not in server.log


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "http://127.0.0.1:1/x"}},
        {"type": "file", "file": {"file_id": "x"}},
    ],
)
def test_row_15_parts_that_would_be_fetched_are_refused(server: RunningServer, part: dict[str, Any]) -> None:
    refused(post(server, chat(messages=[{"role": "user", "content": [part]}])), param="messages")


ODD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "half a character": b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "not UTF-8": b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "UTF-16": json.dumps(chat()).encode("utf-16"),
    "no messages": json.dumps(chat(messages=[])).encode(),
    "messages that are none": json.dumps(chat(messages="hi")).encode(),
    "no role": json.dumps(chat(messages=[{"content": "a"}])).encode(),
    "an odd role": json.dumps(chat(messages=[{"role": "root", "content": "a"}])).encode(),
    "a message that is null": json.dumps(chat(messages=[None])).encode(),
    "two documents": json.dumps(chat()).encode() * 2,
    "a comment": b"/* x */" + json.dumps(chat()).encode(),
    "single quotes": b"{'model': 'm'}",
    "an unknown field": json.dumps(chat(modle="m")).encode(),
}


@pytest.mark.parametrize("name", ODD_BODIES)
def test_row_17_odd_bodies_are_refused(server: RunningServer, name: str) -> None:
    refused(post(server, ODD_BODIES[name]))


@pytest.mark.parametrize(
    "content", ["", "\x00", "\x00" * 1000, "\ufeff", "\u202e", "a\u0300" * 500, "\U0010ffff", " "]
)
def test_row_17_odd_texts_are_served(server: RunningServer, content: str) -> None:
    response = post(server, chat(messages=[{"role": "user", "content": content}]))
    assert response.status_code in (200, 400), response.text


def test_row_17_a_byte_order_mark_is_passed_over(server: RunningServer) -> None:
    assert post(server, b"\xef\xbb\xbf" + json.dumps(chat()).encode()).status_code == 200


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [""], [-1], [2**40], [[1], "a"], None, {"a": 1}, [1.5], [True]]
)
def test_row_17_odd_prompts_are_refused_or_served(server: RunningServer, prompt: Any) -> None:
    response = post(server, {"model": "m", "prompt": prompt}, "/v1/completions")
    assert response.status_code in (200, 400), response.text


def test_row_17_a_key_that_comes_twice_is_one_of_them(server: RunningServer) -> None:
    body = b'{"model": "nobody", ' + json.dumps(chat()).encode()[1:]
    assert post(server, body).status_code in (200, 400)
