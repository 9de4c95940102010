"""Tools through OpenAI's client with the real small model: a demanded call always fits its schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from tests.server.running import RunningServer

pytestmark = pytest.mark.model
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "parameters": NOTHING}},
]
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


@pytest.fixture
def client(demo_server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, timeout=300)


@pytest.mark.parametrize("seed", range(5))
def test_required_calls_fit_their_schemas_at_any_temperature(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(
        model="gpt-3.5-turbo", messages=ASKED, tools=TOOLS, tool_choice="required",
        parallel_tool_calls=False, temperature=1, seed=seed, max_tokens=200,
    )  # fmt: skip
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert calls
    for call in calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_a_named_call_streams_arguments_that_the_sdk_puts_together(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(
        model="gpt-3.5-turbo", messages=ASKED, tools=TOOLS, tool_choice=named, temperature=0, max_tokens=100
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", range(3))
def test_beside_tools_that_may_be_called_an_answer_is_the_form_or_calls(
    client: openai.OpenAI, seed: int
) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER}}
    answer = client.chat.completions.create(
        model="gpt-3.5-turbo", messages=ASKED, tools=TOOLS, response_format=form,
        temperature=1, seed=seed, max_tokens=200,
    )  # fmt: skip
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert choice.message.content is not None
        jsonschema.validate(json.loads(choice.message.content), WEATHER)
    elif choice.finish_reason == "tool_calls":
        for call in choice.message.tool_calls or ():
            assert call.type == "function"
            assert call.function.name in SCHEMAS


def test_a_result_goes_back_into_the_conversation(client: openai.OpenAI) -> None:
    arguments = '{"city": "Paris", "unit": "celsius"}'
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "21 degrees, sunny"},
    ]
    answer = client.chat.completions.create(
        model="gpt-3.5-turbo",
        messages=messages,
        tools=TOOLS,
        tool_choice="none",
        temperature=0,
        max_tokens=20,
    )
    assert answer.choices[0].message.content
