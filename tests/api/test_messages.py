"""`/v1/messages` and `/v1/responses` over HTTP: order of events, errors in each one's own words, refusals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference_server import errors
from inference_server.config.catalog import ModelSpec
from tests.api.server import Server

MESSAGES = {"model": "demo", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
RESPONSES = {"model": "demo", "input": "hi"}
THINKING = b'<think>Hm.</think>\nWell.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec(name="demo", source="scripted", max_model_len=4096, **fields)


def told(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each named as its data says."""
    found = []
    for block in response.text.split("\n\n"):
        if not block.startswith("event: "):
            continue
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_streamed_message_has_a_block_for_each_kind_of_content(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec(reasoning_parser="think"))
        (await server.warm()).reply = THINKING
        tools = [{"name": "f", "input_schema": PARAMETERS}]
        body = {**MESSAGES, "max_tokens": 200, "tools": tools}
        whole = (await server.client.post("/v1/messages", json=body)).json()
        assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
        assert whole["content"][2]["input"] == {"a": 1}
        assert whole["stop_reason"] == "tool_use"
        events = told(await server.client.post("/v1/messages", json={**body, "stream": True}))
        assert [event["type"] for event in events if event["type"] != "content_block_delta"] == [
            "message_start",
            *["content_block_start", "content_block_stop"] * 3,
            "message_delta",
            "message_stop",
        ]
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        pieces: dict[str, str] = {}
        for delta in deltas:
            kind = delta.pop("type")
            pieces[kind] = pieces.get(kind, "") + next(iter(delta.values()))
        assert pieces == {"thinking_delta": "Hm.", "text_delta": "Well.", "input_json_delta": '{"a": 1}'}

    asyncio.run(scenario())


def test_a_streamed_response_has_an_item_for_each_kind_of_content(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec(reasoning_parser="think"))
        (await server.warm()).reply = THINKING
        body = {**RESPONSES, "tools": [{"type": "function", "name": "f", "parameters": PARAMETERS}]}
        whole = (await server.client.post("/v1/responses", json=body)).json()
        events = told(await server.client.post("/v1/responses", json={**body, "stream": True}))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
        assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
        assert done[2]["arguments"] == whole["output"][2]["arguments"] == '{"a": 1}'
        final = events[-1]["response"]
        assert (events[-1]["type"], final["status"]) == ("response.completed", "completed")
        assert [item["id"] for item in final["output"]] == [item["id"] for item in done]
        for usage in (whole["usage"], final["usage"]):
            assert usage["output_tokens_details"] == {"reasoning_tokens": len("<think>Hm.")}
        server.worker.reply = b"Well."
        plain = (await server.client.post("/v1/responses", json=RESPONSES)).json()
        assert plain["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}

    asyncio.run(scenario())


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", MESSAGES), ("/v1/responses", RESPONSES)])
def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        (await server.warm()).fail_after = (2, errors.WorkerDied("the process ended"))
        events = told(await server.client.post(path, json={**body, "stream": True}))
        assert events[-1]["type"] == "error"
        assert "the process ended" in json.dumps(events[-1])
        assert server.door.num_requests == 0

    asyncio.run(scenario())


def refused(response: httpx.Response) -> tuple[int, str]:
    """Status and type of an error, which must be in Anthropic's envelope."""
    body = response.json()
    assert set(body) == {"type", "error"}, body
    assert body["type"] == "error"
    assert body["error"]["message"]
    assert response.headers["x-helixflow-error"]
    assert int(response.headers["content-length"]) == len(response.content)
    return response.status_code, body["error"]["type"]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "nobody"}, 404, "not_found_error"),
        ({"max_tokens": 100_000}, 400, "invalid_request_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, 400, "invalid_request_error"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error"),
        ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, 400, "invalid_request_error"),
        ({"temperature": 1.5}, 400, "invalid_request_error"),
        ({"frequency_penalty": 1}, 400, "invalid_request_error"),
    ],
)
def test_errors_of_messages_are_in_anthropics_words(
    tmp_path: Path, fields: dict[str, Any], status: int, kind: str, streams: bool
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        response = await server.client.post("/v1/messages", json={**MESSAGES, "stream": streams, **fields})
        assert refused(response) == (status, kind), response.text
        assert response.headers["request-id"] == response.headers["x-request-id"]

    asyncio.run(scenario())


KEYS = """
keys:
- {name: alice, key: alice-0123456789abc, requests_per_minute: 1}
- {name: root, key: root-0123456789abcd, scopes: [admin]}
"""


@pytest.mark.parametrize("path", ["/v1/messages", "/api/v1/messages"])
def test_so_are_those_from_before_and_behind_the_route(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        (tmp_path / "keys.yaml").write_text(KEYS, encoding="utf-8")
        server = Server(tmp_path, demo=spec(), api_key_file=str(tmp_path / "keys.yaml"), max_body_bytes=1024)
        (await server.warm()).fail_after = (0, ValueError("a bug"))  # type: ignore[assignment]

        async def ask(key: str, method: str = "POST", below: str = "", **fields: Any) -> tuple[int, str]:
            headers = {"x-api-key": key, "content-type": "application/json"}
            content = json.dumps({**MESSAGES, **fields})
            response = await server.client.request(method, path + below, content=content, headers=headers)
            return refused(response)

        alice = "alice-0123456789abc"
        assert await ask("nobody's") == (401, "authentication_error")
        assert await ask("root-0123456789abcd") == (403, "permission_error")
        assert await ask(alice, "PUT") == (405, "invalid_request_error")
        assert await ask(alice, below="/batches") == (404, "not_found_error")
        assert await ask(alice, system="x" * 2000) == (413, "request_too_large")
        assert await ask(alice) == (500, "api_error")
        assert await ask(alice, stream=True) == (429, "rate_limit_error")

    asyncio.run(scenario())


def test_the_model_is_told_that_a_tool_has_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        for is_error in (False, True):
            result = {"type": "tool_result", "tool_use_id": "a", "content": "no file", "is_error": is_error}
            messages = [
                *MESSAGES["messages"],  # type: ignore[misc]
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [result]},
            ]
            response = await server.client.post("/v1/messages", json={**MESSAGES, "messages": messages})
            assert response.status_code == 200, response.text
        went, failed = [bytes(t for t in seen.prompt_token_ids if t < 256) for seen in worker.seen]
        assert b"no file" in went
        assert b"Error" not in went
        assert b"Error: no file" in failed

    asyncio.run(scenario())


def test_what_anthropics_clients_send_without_need_is_taken(tmp_path: Path) -> None:
    name, mark = "f" * 128, {"type": "ephemeral"}
    tool = {
        "name": name, "input_schema": PARAMETERS, "strict": True, "eager_input_streaming": True,
        "cache_control": mark,
    }  # fmt: skip
    use = {"type": "tool_use", "id": "a", "name": name, "input": {}, "caller": {"type": "direct"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": None}
    messages = [
        *MESSAGES["messages"],  # type: ignore[misc]
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    fields = {
        "messages": messages,
        "tools": [tool],
        "cache_control": mark,
        "output_config": {"effort": "low"},
    }

    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        response = await server.client.post("/v1/messages", json=MESSAGES | fields)
        assert response.status_code == 200, response.text
        assert server.worker.seen[0].sampling.grammar is None
        body = {"model": "demo", **fields}
        counted = await server.client.post("/v1/messages/count_tokens", json=body)
        assert counted.json() == {"input_tokens": len(server.worker.seen[0].prompt_token_ids)}

    asyncio.run(scenario())


@pytest.mark.parametrize("demands", [False, True])
def test_a_message_may_be_held_to_a_form_unless_a_call_is_demanded(tmp_path: Path, demands: bool) -> None:
    form = {"type": "json_schema", "schema": PARAMETERS}
    tools = {"tools": [{"name": "f", "input_schema": PARAMETERS}], "tool_choice": {"type": "any"}}

    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        (await server.warm()).reply = b'[{"name": "f", "arguments": {"a": 1}}]' if demands else b'{"a": 1}'
        for fields, param in (
            ({"output_config": {"format": form}}, "output_config.format"),
            ({"output_format": form}, "output_format"),
        ):
            body = {**MESSAGES, **fields, **(tools if demands else {})}
            response = await server.client.post("/v1/messages", json=body)
            (block,) = response.json()["content"]
            assert block["type"] == ("tool_use" if demands else "text")
            grammar = server.worker.seen[-1].sampling.grammar
            assert grammar is not None
            assert grammar.param == ("tool_choice" if demands else param)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "image_url": "y"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": "msg_1"}]},
            "input[1]",
        ),
    ],
)
def test_what_a_response_would_ignore_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    async def scenario() -> None:
        refusal = await Server(tmp_path, demo=spec()).client.post("/v1/responses", json=RESPONSES | fields)
        assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, param)

    asyncio.run(scenario())


def test_what_a_response_need_not_look_at_is_taken(tmp_path: Path) -> None:
    said = {
        "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
        "phase": "final_answer", "content": [{"type": "output_text", "text": "ho", "annotations": []}],
    }  # fmt: skip
    fields = {
        "input": [{"role": "user", "content": "hi"}, said, {"role": "user", "content": "hi"}],
        "stream_options": {"include_obfuscation": False},
        "prompt_cache_retention": "24h",
    }

    async def scenario() -> None:
        response = await Server(tmp_path, demo=spec()).client.post("/v1/responses", json=RESPONSES | fields)
        assert response.status_code == 200, response.text

    asyncio.run(scenario())


def test_an_empty_answer_is_a_message_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        (await server.warm()).tokens = [259]
        message = (await server.client.post("/v1/messages", json=MESSAGES)).json()
        assert (message["content"], message["stop_reason"]) == ([], "end_turn")
        events = told(await server.client.post("/v1/responses", json={**RESPONSES, "stream": True}))
        assert events[-1]["response"]["output"][0]["type"] == "message"

    asyncio.run(scenario())


def test_tokens_are_counted_without_a_load(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        body = {"model": "demo", "messages": MESSAGES["messages"], "system": "s"}
        counted = await server.client.post("/v1/messages/count_tokens", json=body)
        assert counted.json() == {"input_tokens": len("<>system\ns>\n<user\nhi>\n<assistant\n") - 1}
        assert server.launcher.workers == []

    asyncio.run(scenario())
