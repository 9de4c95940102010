"""`/v1/responses` through OpenAI's client, with the real small model."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.server.running import RunningServer

pytestmark = pytest.mark.model
MODEL = "gpt-3.5-turbo"  # an alias of the demo model
FRANCE = "What is the capital of France? One sentence."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
IMAGE = {"type": "input_image", "image_url": "x"}
TOOL: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}


@pytest.fixture
def client(demo_server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, timeout=300)


def test_a_response_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=40)
    assert "Paris" in response.output_text
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    with client.responses.stream(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=40) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == response.output_text
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_items_instructions_and_an_answer_that_is_cut(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        instructions="You answer in French.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hello!"}]},
            {"role": "assistant", "content": "Bonjour !"},
            {"role": "user", "content": "Tell me a long story about a dragon."},
        ],
        max_output_tokens=2,
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_a_demanded_tool_and_its_result(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": FRANCE, "tools": [TOOL], "max_output_tokens": 80}
    named: Any = {"type": "function", "name": "weather"}
    response = client.responses.create(**asked, tool_choice=named)
    (call,) = response.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    with client.responses.stream(**asked, tool_choice="required", parallel_tool_calls=False) as stream:
        final = stream.get_final_response()
    (streamed,) = final.output
    assert streamed.type == "function_call"
    assert streamed.name == "weather"
    conversation: Any = [
        {"role": "user", "content": FRANCE},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
    ]
    after = client.responses.create(model=MODEL, input=conversation, max_output_tokens=10)
    assert after.output_text


class City(BaseModel):
    """What the SDK's helper asks for."""

    name: str
    is_capital: bool


def test_the_sdk_parses_structured_text(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL, input="Describe Paris.", text_format=City, temperature=0, max_output_tokens=100
    )
    assert isinstance(response.output_parsed, City)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"truncation": "auto"}, "truncation"),
    ],
)  # fmt: skip
def test_what_needs_a_memory_or_is_no_text_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    asked: Any = {"model": MODEL, "input": "hi", **fields}
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**asked)
    assert refused.value.param == param
