"""`/v1/messages` through Anthropic's own client, with the real small model."""

from __future__ import annotations

from typing import Any

import anthropic
import jsonschema
import pytest

from tests.server.running import RunningServer

pytestmark = pytest.mark.model
MODEL = "gpt-3.5-turbo"  # an alias of the demo model
GREEDY = {"temperature": 0}  # the client knows no such argument any more
FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France? One sentence."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "weather", "description": "Forecast.", "input_schema": SCHEMA}


@pytest.fixture
def client(demo_server: RunningServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo_server.url, api_key="x", max_retries=0, timeout=300)


def test_a_message_and_its_stream_say_the_same(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model=MODEL, max_tokens=40, messages=FRANCE, extra_body=GREEDY)
    (block,) = message.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert (message.stop_reason, message.role, message.type) == ("end_turn", "assistant", "message")
    assert message.usage.output_tokens > 3
    with client.messages.stream(model=MODEL, max_tokens=40, messages=FRANCE, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == block.text
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == message.usage.output_tokens


def test_system_blocks_and_stop_sequences(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=60,
        extra_body=GREEDY,
        system=[{"type": "text", "text": "You count."}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Count from 1 to 9, with commas."}]}],
        stop_sequences=["4"],
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "4")
    (block,) = message.content
    assert block.type == "text"
    assert "3" in block.text
    assert "4" not in block.text


def test_an_answer_that_is_cut_and_one_that_was_begun(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(model=MODEL, max_tokens=3, messages=FRANCE)
    assert cut.stop_reason == "max_tokens"
    begun: Any = [*FRANCE, {"role": "assistant", "content": "The capital of France is"}]
    message = client.messages.create(model=MODEL, max_tokens=4, messages=begun, extra_body=GREEDY)
    assert "Paris" in getattr(message.content[0], "text", "")


@pytest.mark.parametrize("choice", [{"type": "tool", "name": "weather"}, {"type": "any"}])
def test_a_demanded_tool_fits_its_schema_whole_and_streamed(client: anthropic.Anthropic, choice: Any) -> None:
    if choice["type"] == "any":
        choice = {**choice, "disable_parallel_tool_use": True}
    asked: Any = {
        "model": MODEL,
        "max_tokens": 120,
        "tools": [TOOL],
        "tool_choice": choice,
        "messages": FRANCE,
    }
    message = client.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    (block,) = message.content
    assert block.type == "tool_use"
    assert block.name == "weather"
    jsonschema.validate(block.input, SCHEMA)
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    (streamed,) = final.content
    assert streamed.type == "tool_use"
    jsonschema.validate(streamed.input, SCHEMA)
    used = {"type": "tool_use", "id": block.id, "name": "weather", "input": block.input}
    result: Any = [
        *FRANCE,
        {"role": "assistant", "content": [used]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "Sunny."}]},
    ]  # fmt: skip
    after = client.messages.create(model=MODEL, max_tokens=10, tools=[TOOL], messages=result)
    assert after.usage.input_tokens + (after.usage.cache_read_input_tokens or 0) > 20


def test_tokens_are_counted_as_they_are_billed(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=FRANCE, system="Be brief.")
    message = client.messages.create(model=MODEL, max_tokens=1, messages=FRANCE, system="Be brief.")
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_errors_are_the_clients_own_exceptions(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="nobody", max_tokens=1, messages=FRANCE)
    assert "nobody" in str(unknown.value)
    assert unknown.value.type == "not_found_error"
    assert (unknown.value.request_id or "").startswith("req-")
    with (
        pytest.raises(anthropic.NotFoundError) as streamed,
        client.messages.stream(model="nobody", max_tokens=1, messages=FRANCE),
    ):
        pass
    assert streamed.value.type == "not_found_error"
    image: Any = [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]
    with pytest.raises(anthropic.BadRequestError, match="only text and tools"):
        client.messages.create(model=MODEL, max_tokens=1, messages=image)
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        client.messages.create(model=MODEL, max_tokens=100_000, messages=FRANCE)
