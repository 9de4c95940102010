"""Bodies are read within limits of size, depth and time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.api.server import Server, run

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
VALID = b'{"model":"demo","messages":[{"role":"user","content":"hi"}]%s}'


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ('application/json;charset="UTF-8"', 200),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
def test_only_utf8_json_is_read(tmp_path: Path, content_type: str, status: int) -> None:
    async def scenario() -> None:
        headers = {"content-type": content_type}
        response = await Server(tmp_path).client.post(PATH, content=VALID % b"", headers=headers)
        assert response.status_code == status

    run(scenario())


def test_an_encoded_body_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        headers = {**JSON, "content-encoding": "gzip"}
        response = await Server(tmp_path).client.post(PATH, content=VALID % b"", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")

    run(scenario())


def test_a_declared_size_is_believed_before_a_byte_is_read_and_a_hidden_one_is_counted(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, max_body_bytes=1000)
        num_read = 0

        async def body(num_chunks: int):  # type: ignore[no-untyped-def]
            nonlocal num_read
            for _ in range(num_chunks):
                num_read += 100
                yield b" " * 100

        declared = {**JSON, "content-length": "100000"}
        assert (await server.client.post(PATH, content=body(5), headers=declared)).status_code == 413
        assert num_read == 0
        response = await server.client.post(PATH, content=body(1000), headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        assert num_read < 2000

    run(scenario())


@pytest.mark.parametrize(("depth", "status"), [(60, 200), (63, 200), (65, 400), (900, 400), (100_000, 400)])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_limited(tmp_path: Path, depth: int, status: int, pair: tuple[bytes, bytes]) -> None:
    async def scenario() -> None:
        nested = pair[0] * (depth - 2) + b"1" + pair[1] * (depth - 2)
        body = VALID % (b',"metadata":{"m":%s}' % nested)
        response = await Server(tmp_path).client.post(PATH, content=body, headers=JSON)
        assert response.status_code == status, response.text
        if status != 200:
            assert response.json()["error"]["type"] == "invalid_request_error"

    run(scenario())


def test_brackets_in_strings_and_many_shallow_ones_are_no_depth(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        for value in (b'"' + b"[" * 500 + b'\\"{"', b"[" + b"[]," * 500 + b"[]]"):
            body = VALID % (b',"metadata":{"m":%s}' % value)
            assert (await server.client.post(PATH, content=body, headers=JSON)).status_code == 200

    run(scenario())


@pytest.mark.parametrize(
    "tail",
    [
        b"[" * 70 + b'"' + b'\\"' * 500_000,
        b',"metadata":{"m":[' + b"[]," * 500_000 + b"[]]}}",
        b',"metadata":{"m":["' + b'[\\"' * 400_000 + b'"]}}',
        b',"metadata":{"m":[' + b'"",' * 500_000 + b'"["]}}',
    ],
)
def test_no_body_within_the_size_limit_takes_long(tmp_path: Path, tail: bytes) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        started_s = time.perf_counter()
        await server.client.post(PATH, content=(VALID % b"")[:-1] + tail, headers=JSON)
        assert time.perf_counter() - started_s < 2

    run(scenario())


def test_a_byte_order_mark_is_skipped_and_the_last_of_two_equal_keys_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        body = b"\xef\xbb\xbf" + VALID % b',"max_tokens":1,"max_tokens":2'
        response = await server.client.post(PATH, content=body, headers=JSON)
        assert response.json()["usage"]["completion_tokens"] == 2

    run(scenario())
