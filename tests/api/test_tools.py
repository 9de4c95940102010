"""Tools over HTTP: what the model is told and held to, and what its text becomes, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from inference_server.config.catalog import ModelSpec
from tests.api.server import Server

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/n"}},
            "required": ["a", "b"],
            "$defs": {"n": {"type": "integer"}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
WRONG = {"type": "object", "properties": {"a": {"type": "x"}}}
USER = {"role": "user", "content": "What is 1 + 2?"}
HERMES = b'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
LIST = b'[{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "now", "arguments": {}}]'


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec(name="demo", source="scripted", max_model_len=4096, **fields)


async def ask(server: Server, **fields: Any) -> dict[str, Any]:
    response = await server.chat(messages=[USER], **fields)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def stream(server: Server, **fields: Any) -> tuple[dict[str, Any], str]:
    """The message put together from a stream, and why it ended."""
    response = await server.chat(messages=[USER], stream=True, **fields)
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = ""
    for line in response.text.splitlines():
        if not line.startswith("data: {"):
            continue
        choice = json.loads(line[6:])["choices"][0]
        delta = choice["delta"]
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                assert call["id"].startswith("call_")
                message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
            else:
                assert "id" not in call
            message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return message, reason


def test_a_call_that_the_model_writes_by_itself_is_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        (await server.warm()).reply = HERMES
        choice = await ask(server, tools=[ADD, NOW])
        assert choice["finish_reason"] == "tool_calls"
        message = choice["message"]
        assert message["content"] == "Let me see."
        (call,) = message["tool_calls"]
        assert call["type"] == "function"
        assert call["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
        streamed, reason = await stream(server, tools=[ADD, NOW])
        assert (streamed["content"], reason) == ("Let me see.", "tool_calls")
        assert streamed["tool_calls"] == [call["function"]]

    asyncio.run(scenario())


def test_without_tools_the_same_text_is_text(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        (await server.warm()).reply = HERMES
        for fields in ({}, {"tools": [ADD], "tool_choice": "none"}, {"tools": []}):
            choice = await ask(server, **fields)
            assert choice["message"] == {"role": "assistant", "content": HERMES.decode(), "refusal": None}
            assert choice["finish_reason"] == "stop"

    asyncio.run(scenario())


def test_a_template_that_knows_no_tools_is_told_of_them_in_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        await ask(server, tools=[ADD])
        told = bytes(token for token in worker.seen[0].prompt_token_ids if token < 256).decode()
        assert told.startswith("system\nYou may call these functions.")
        assert json.dumps(ADD) in told
        await ask(server, tools=[ADD], tool_choice="none")
        assert len(worker.seen[1].prompt_token_ids) < 100

    asyncio.run(scenario())


def test_a_demanded_call_is_held_to_by_a_grammar_and_streams_its_arguments(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        worker.reply = LIST
        choice = await ask(server, tools=[ADD, NOW], tool_choice="required")
        assert choice["message"]["content"] is None
        names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
        assert (names, choice["finish_reason"]) == (["add", "now"], "tool_calls")
        streamed, reason = await stream(server, tools=[ADD, NOW], tool_choice="required")
        assert [json.loads(call["arguments"]) for call in streamed["tool_calls"]] == [{"a": 1, "b": 2}, {}]
        assert reason == "tool_calls"
        grammar = worker.seen[0].sampling.grammar
        assert grammar is not None
        schema = json.loads(grammar.text)
        assert schema["$defs"]["tool_0"]["properties"]["b"] == {"$ref": "#/$defs/tool_0/$defs/n"}
        assert "maxItems" not in schema
        await ask(server, tools=[ADD], tool_choice="required", parallel_tool_calls=False)
        assert json.loads(worker.seen[-1].sampling.grammar.text)["maxItems"] == 1  # type: ignore[union-attr]

        worker.reply = b'{"a": 1, "b": 2}'
        named = {"type": "function", "function": {"name": "add"}}
        choice = await ask(server, tools=[ADD, NOW], tool_choice=named)
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
        streamed, _ = await stream(server, tools=[ADD, NOW], tool_choice=named)
        assert streamed["tool_calls"] == [call["function"]]

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("name", [None, "add"])
def test_a_demanded_call_goes_before_a_form(tmp_path: Path, path: str, name: str | None) -> None:
    form = {"type": "json_schema", "name": "out", "schema": {"type": "object", "properties": {}}}
    flat = {"type": "function", **ADD["function"]}
    named = {"type": "function", "name": name}
    fields = (
        {"messages": [USER], "tools": [ADD], "response_format": {"type": "json_object"}}
        if path == "/v1/chat/completions"
        else {"input": "hi", "tools": [flat], "text": {"format": form}}
    )
    if name is None:
        fields["tool_choice"] = "required"
    else:
        fields["tool_choice"] = (
            named if "input" in fields else {"type": "function", "function": {"name": name}}
        )

    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        worker.reply = LIST if name is None else b'{"a": 1, "b": 2}'
        response = await server.client.post(path, json={"model": "demo", **fields})
        assert response.status_code == 200, response.text
        assert worker.seen[0].sampling.grammar.param == "tool_choice"  # type: ignore[union-attr]
        assert '"name":"add"' in response.text

    asyncio.run(scenario())


CALL = b'<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
FORM = {"response_format": {"type": "json_object"}}


def test_beside_a_form_the_model_may_still_call(tmp_path: Path) -> None:
    form = json.dumps({"a": CALL.decode()})  # what looks like a call inside the form is none

    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        worker.reply = CALL
        choice = await ask(server, tools=[ADD, NOW], **FORM)
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        streamed, reason = await stream(server, tools=[ADD, NOW], **FORM)
        assert [call["name"] for call in streamed["tool_calls"]] == ["add"]
        assert reason == "tool_calls"
        grammar = worker.seen[0].sampling.grammar
        assert grammar is not None
        assert (grammar.kind, grammar.param) == ("grammar", "response_format")
        worker.reply = form.encode()
        choice = await ask(server, tools=[ADD, NOW], **FORM)
        assert (choice["message"]["content"], choice["finish_reason"]) == (form, "stop")
        streamed, reason = await stream(server, tools=[ADD, NOW], **FORM)
        assert (streamed["content"], reason) == (form, "stop")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("entry", "fields"),
    [
        ({"tool_parser": "llama3"}, FORM),
        ({"tool_parser": "none"}, FORM),
        ({}, {"guided_regex": "a+"}),
        ({}, {**FORM, "tool_choice": "none"}),
    ],
)
def test_where_calls_have_no_marks_of_their_own_the_form_holds(
    tmp_path: Path, entry: dict[str, Any], fields: dict[str, Any]
) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec(**entry))
        (await server.warm()).reply = b'{"name": "add", "arguments": {"a": 1}}'
        choice = await ask(server, tools=[ADD], **fields)
        assert choice["message"]["content"] == '{"name": "add", "arguments": {"a": 1}}'
        grammar = server.worker.seen[0].sampling.grammar
        assert grammar is not None
        assert grammar.kind in ("json_schema", "regex")

    asyncio.run(scenario())


def test_halves_of_characters_in_calls_harm_nobody(tmp_path: Path) -> None:
    half = '{"a": "\\ud800"}'

    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        worker.reply = f'<tool_call>{{"name": "add", "arguments": {half}}}</tool_call>'.encode()
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": half}}
        past = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, USER]
        response = await server.chat(messages=past, tools=[ADD])
        assert response.status_code == 200, response.text
        (answered,) = response.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(answered["function"]["arguments"]) == {"a": "\ufffd"}
        streamed, reason = await stream(server, tools=[ADD])
        assert (streamed["tool_calls"], reason) == ([answered["function"]], "tool_calls")

    asyncio.run(scenario())


def test_data_in_a_tools_schema_that_looks_like_a_reference_stays_as_it_is(tmp_path: Path) -> None:
    data = {"enum": [{"$ref": "#/a"}], "default": {"$ref": "#/b"}}
    named = {"type": "object", "properties": {"$ref": {"type": "string"}, "x": data}}
    tool = {"type": "function", "function": {"name": "f", "parameters": named}}

    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        worker.reply = b'[{"name": "f", "arguments": {}}]'
        await ask(server, tools=[tool], tool_choice="required")
        grammar = worker.seen[0].sampling.grammar
        assert grammar is not None
        assert json.loads(grammar.text)["$defs"]["tool_0"] == named

    asyncio.run(scenario())


def test_a_form_is_content_even_where_the_template_opens_a_thought(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec(reasoning_parser="think"))
        (await server.warm()).reply = b'{"a": 1}'
        opened = {"messages": [USER, {"role": "assistant", "content": "<think>"}]}
        fields = {"continue_final_message": True, "add_generation_prompt": False}
        form = {"response_format": {"type": "json_object"}}
        response = await server.chat(**opened, **fields, **form)
        assert response.status_code == 200, response.text
        message = response.json()["choices"][0]["message"]
        assert message["content"] == '{"a": 1}'
        response = await server.chat(**opened, **fields)
        assert response.json()["choices"][0]["message"]["reasoning_content"] == '{"a": 1}'

    asyncio.run(scenario())


def test_a_conversation_with_calls_and_results_is_written_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        messages = [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ]
        assert (await server.chat(messages=messages)).status_code == 200
        told = bytes(token for token in worker.seen[0].prompt_token_ids if token < 256).decode()
        assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in told
        assert "<tool_response>\n3\n</tool_response>" in told

    asyncio.run(scenario())


def test_a_call_may_come_back_as_clients_put_it_together_from_a_stream(tmp_path: Path) -> None:
    function = {"name": "add", "arguments": '{"a": 1}', "parsed_arguments": {"a": 1}}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    said = {
        "role": "assistant", "content": None, "refusal": None, "audio": None, "annotations": None,
        "function_call": None, "parsed": None, "tool_calls": [call],
    }  # fmt: skip
    result = {"role": "tool", "tool_call_id": "c1", "content": "3"}

    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        worker = await server.warm()
        response = await server.chat(messages=[USER, said, result], tools=[ADD])
        assert response.status_code == 200, response.text
        told = bytes(token for token in worker.seen[0].prompt_token_ids if token < 256).decode()
        assert '{"name": "add", "arguments": {"a": 1}}' in told

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, None),
        ({"tools": [{"type": "web_search"}]}, None),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "always"}, "tool_choice"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": WRONG}}
                ],
                "tool_choice": "required",
            },
            "tool_choice",
        ),
        ({"messages": [{"role": "tool", "content": "3"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "3", "tool_call_id": "a"}]}, "messages[0].tool_call_id"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], param: str | None) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        await server.warm()
        response = await server.chat(**fields)
        assert response.status_code == 400, response.text
        assert param is None or response.json()["error"]["param"] == param

    asyncio.run(scenario())


def test_reasoning_is_told_apart_if_the_entry_says_how_it_is_marked(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec(reasoning_parser="think"))
        (await server.warm()).reply = b"<think>\nOne and two.\n</think>\n\nThree."
        choice = await ask(server)
        assert choice["message"]["reasoning_content"] == "One and two."
        assert choice["message"]["content"] == "Three."
        assert choice["finish_reason"] == "stop"
        streamed, _ = await stream(server)
        assert (streamed["reasoning_content"], streamed["content"]) == ("One and two.", "Three.")

    asyncio.run(scenario())


def test_scores_come_with_the_pieces_that_the_parser_lets_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=spec())
        (await server.warm()).reply = HERMES
        response = await server.chat(messages=[USER], stream=True, tools=[ADD], logprobs=True)
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        scored = [
            score["token"]
            for chunk in chunks
            for score in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert "".join(scored) == HERMES.decode()

    asyncio.run(scenario())
