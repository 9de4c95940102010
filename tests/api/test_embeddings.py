"""`/v1/embeddings` over HTTP: its shapes, and a clear refusal of everything else."""

from __future__ import annotations

import asyncio
import base64
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.server import CHAT, Server


async def post(server: Server, **fields: Any) -> httpx.Response:
    return await server.client.post("/v1/embeddings", json={"model": "embedder", "input": "abc", **fields})


def test_one_input_and_several_have_openais_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        one = (await post(server)).json()
        assert one["object"] == "list"
        assert one["model"] == "embedder"
        assert one["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        vector = one["data"][0]["embedding"]
        assert (one["data"][0]["object"], one["data"][0]["index"], len(vector)) == ("embedding", 0, 16)
        assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-6)
        several = (await post(server, input=["x", [97, 98, 99], "y"])).json()["data"]
        assert [entry["index"] for entry in several] == [0, 1, 2]
        assert several[1]["embedding"] == vector
        assert (await post(server, input=[97, 98, 99])).json()["data"][0]["embedding"] == vector

    asyncio.run(scenario())


def test_base64_holds_the_same_numbers(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        floats = (await post(server, encoding_format="float")).json()["data"][0]["embedding"]
        text = (await post(server, encoding_format="base64")).json()["data"][0]["embedding"]
        assert list(struct.unpack("<16f", base64.b64decode(text))) == floats

    asyncio.run(scenario())


def test_fewer_dimensions_are_a_beginning_of_unit_length(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        vector = (await post(server, dimensions=4)).json()["data"][0]["embedding"]
        assert len(vector) == 4
        assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-6)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "none of them empty"),
        ({"input": []}, "input", "none of them empty"),
        ({"input": ["a", ""]}, "input", "none of them empty"),
        ({"input": [[]]}, "input", "none of them empty"),
        ({"input": [1, "a"]}, "input", "a list of either"),
        ({"input": {"text": "a"}}, "input", "a list of either"),
        ({"input": [-1]}, "input", "a list of either"),
        ({"input": [True]}, "input", "a list of either"),
        ({"input": [300]}, "input", "between 0 and 259"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"encoding_format": "hex"}, "encoding_format", "Invalid value"),
        ({"dimensions": 0}, "dimensions", "Invalid value"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "Invalid value"),
        ({"temperature": 1}, "temperature", "Unrecognized"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, fields: dict[str, Any], param: str, words: str) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        response = await post(server, **fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert words in error["message"]
        assert (await post(server)).status_code == 200

    asyncio.run(scenario())


def test_models_are_told_apart_by_what_they_are_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        await server.warm()
        for response, route in (
            (await post(server, model="demo"), "/v1/chat/completions"),
            (await server.client.post("/v1/chat/completions", json={**CHAT, "model": "embedder"}), "/v1/emb"),
        ):
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "model"
            assert route in response.json()["error"]["message"]
        assert (await post(server, model="nobody")).status_code == 404

    asyncio.run(scenario())


def test_inputs_beyond_the_models_length_are_refused_or_cut(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        refused = await post(server, input="a" * 32769)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        cut = await post(server, input="a" * 32769, truncate_prompt_tokens=-1)
        assert cut.json()["usage"]["prompt_tokens"] == 32768

    asyncio.run(scenario())
