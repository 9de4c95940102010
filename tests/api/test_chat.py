"""Chat completions in OpenAI's shapes, whole and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.server import Server, events, run

CONTENT = "Hello, world."


def test_a_chat_has_openais_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).chat(model="gpt-3.5-turbo")
        body = response.json()
        assert response.status_code == 200
        assert body.pop("id").startswith("chatcmpl-")
        assert body.pop("created") > 0
        assert body.pop("system_fingerprint").startswith("fp_")
        assert body.pop("usage") == {
            "prompt_tokens": 21,
            "completion_tokens": 14,
            "total_tokens": 35,
            "prompt_tokens_details": {"cached_tokens": 2},
        }
        assert body == {
            "object": "chat.completion",
            "model": "gpt-3.5-turbo",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": CONTENT, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                    "stop_reason": None,
                }
            ],
        }

    run(scenario())


def test_a_stream_tells_the_role_the_text_the_end_and_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).chat(stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        *chunks, done = events(response.text)
        assert done == "[DONE]"
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == CONTENT
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [
            "stop"
        ]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert not any("usage" in chunk for chunk in chunks)

    run(scenario())


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).chat(stream=True, stream_options={"include_usage": True})
        *chunks, last, done = events(response.text)
        assert done == "[DONE]"
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 14
        assert all(chunk["usage"] is None for chunk in chunks)

    run(scenario())


def test_text_with_quotes_newlines_and_emoji_survives_the_chunk_encoding(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        text = 'a "quoted"\n\nline \\ 😀 \x00 data: [DONE]'
        (await server.warm()).reply = text.encode()
        chunks = events((await server.chat(stream=True)).text)[:-1]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        assert (await server.chat()).json()["choices"][0]["message"]["content"] == text

    run(scenario())


def test_an_answer_cut_short_says_length(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        for name in ("max_tokens", "max_completion_tokens"):
            choice = (await server.chat(**{name: 5})).json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")

    run(scenario())


def test_parameters_reach_the_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        response = await server.chat(
            temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, seed=-1, presence_penalty=1,
            frequency_penalty=-1, repetition_penalty=1.1, min_tokens=2, stop_token_ids=[7], max_tokens=9,
            priority=3, cache_salt="s",
        )  # fmt: skip
        assert response.status_code == 200
        seen = server.worker.seen[0]
        sampling = seen.sampling
        assert (seen.priority, seen.cache_salt) == (3, "s")
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)
        assert (sampling.repetition_penalty, sampling.min_tokens, sampling.max_tokens) == (1.1, 2, 9)
        assert (sampling.stop_token_ids, sampling.seed) == ((7,), 2**64 - 1)

    run(scenario())


def test_content_parts_of_text_and_the_developer_role_are_understood(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        messages = [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": parts, "name": "ann"},
        ]
        assert (await server.chat(messages=messages)).status_code == 200
        prompt = bytes(token for token in server.worker.seen[0].prompt_token_ids if token < 256)
        assert prompt == b"system\nbe kind\nuser\none\ntwo\nassistant\n"

    run(scenario())


def test_an_answer_of_ours_may_be_sent_back_as_the_sdk_dumps_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        echo = {
            "role": "assistant", "content": "Hello", "refusal": None, "audio": None, "function_call": None,
            "tool_calls": None, "annotations": None,
        }  # fmt: skip
        messages = [{"role": "user", "content": "hi"}, echo, {"role": "user", "content": "more"}]
        assert (await Server(tmp_path).chat(messages=messages)).status_code == 200

    run(scenario())


ACCEPTED: list[dict[str, Any]] = [
    {"user": "ann"}, {"metadata": {"a": "b"}}, {"store": False}, {"service_tier": "auto"},
    {"safety_identifier": "x"}, {"prompt_cache_key": "k"}, {"n": 1}, {"logprobs": False}, {"top_logprobs": 0},
    {"response_format": {"type": "text"}}, {"tools": []}, {"tool_choice": "none"}, {"logit_bias": {}},
    {"modalities": ["text"]}, {"temperature": None}, {"stop": None}, {"stop": []}, {"ignore_eos": None},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}]}]},
    {"prompt_cache_retention": "24h"}, {"stop": ["a"] * 16},
    {"stream_options": None}, {"skip_special_tokens": True}, {"max_tokens": 4, "max_completion_tokens": 4},
]  # fmt: skip


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_fields_without_effect_are_accepted(tmp_path: Path, fields: dict[str, Any]) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).chat(**fields)
        assert response.status_code == 200, response.text

    run(scenario())


REFUSED: list[tuple[str, Any]] = [
    ("n", 9), ("n", 100000), ("logprobs", 1), ("top_logprobs", 3),
    ("tools", [{"type": "function"}]), ("tool_choice", "required"), ("logit_bias", {"5": 101}),
    ("store", True),
    ("functions", [{}]), ("function_call", "auto"), ("reasoning_effort", "huge"),
    ("chat_template", "{{ 1 }}"),
    ("chat_template_kwargs", {"a": 1}), ("modalities", ["audio"]), ("audio", {}), ("keep_alive", "soon"),
    ("structured_outputs", {"regex": 1}), ("guided_json", 1), ("allowed_token_ids", []),
    ("continue_final_message", 1), ("include_stop_str_in_output", 1), ("skip_special_tokens", 0),
    ("prediction", {}), ("web_search_options", {}), ("parallel_tool_calls", 1),
    ("tempreature", 1), ("__proto__", 1), ("tool", None),
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True),
    ("top_p", 0), ("top_p", 1.5), ("top_k", -2), ("min_p", 2), ("seed", 2**63), ("seed", 1.5),
    ("presence_penalty", 3), ("frequency_penalty", -3), ("repetition_penalty", 0), ("max_tokens", 0),
    ("max_tokens", -1), ("max_tokens", 2**63),
    ("max_tokens", 1.5), ("min_tokens", -1), ("max_tokens", 100000),
    ("stop", ""), ("stop", ["a"] * 17), ("stop", ["a" * 2000]), ("stop", 3), ("stop_token_ids", [-1]),
    ("stop_token_ids", list(range(2000))), ("stream_options", {"include_usage": True}), ("stream", "yes"),
    ("messages", []), ("messages", None), ("messages", "hi"), ("messages", [{}]),
    ("messages", [{"role": "user", "content": "x"}] * 2049), ("messages", [{"role": "king", "content": "x"}]),
    ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "user", "content": []}]), ("messages", [{"role": "user", "content": 3}]),
    ("messages", [{"role": "user", "content": "x", "unknown": 1}]),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "file", "file": {}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": "y"}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": "x", "file": {}}]}]),
    ("response_format", {"type": "text", "json_schema": {"schema": {}}}),
    ("response_format", {"type": "json_object", "json_schema": {"schema": {}}}),
    ("messages", [{"role": "function", "name": "f", "content": "x"}]),
    ("messages", [{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
    ("model", None), ("model", 3), ("model", ""), ("timeout", 0), ("user", 3), ("priority", 2**40),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_not_supported_or_out_of_range_is_a_400_that_names_the_field(
    tmp_path: Path, name: str, value: Any
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        response = await server.chat(**{name: value})
        error = response.json()["error"]
        assert response.status_code == 400, response.text
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["code"] in ("invalid_value", "unsupported_parameter", "context_length_exceeded")
        assert error["param"].startswith(name)
        assert name in error["message"] or name in error["param"]
        assert not server.launcher.workers or not server.worker.seen

    run(scenario())


def test_differing_limits_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).chat(max_tokens=4, max_completion_tokens=5)
        assert response.json()["error"]["param"] == "max_tokens"

    run(scenario())


def test_an_unknown_model_is_404_with_its_code(tmp_path: Path) -> None:
    async def scenario() -> None:
        for name in ("nope", "../../etc/passwd", "demo\x00", "dem\u00f6", "/demo", "DEMO", "x\r\ny"):
            for stream in (False, True):
                response = await Server(tmp_path).chat(model=name, stream=stream)
                error = response.json()["error"]
                assert (response.status_code, error["code"], error["param"]) == (
                    404,
                    "model_not_found",
                    "model",
                )
                assert "\n" not in error["message"]

    run(scenario())
