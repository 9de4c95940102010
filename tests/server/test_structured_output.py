"""Structured output by the real small model at temperature 1, judged by `jsonschema`; and through the SDK."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.server.running import RunningServer
from tests.server.schemas import schema

pytestmark = pytest.mark.model
MAX_TOKENS = 300


@pytest.fixture
def client(demo_server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, timeout=600)


def answer_to(server: RunningServer, number: int) -> tuple[dict[str, Any], str, str]:
    """The schema, the answer and why it ended."""
    wanted = schema(number)
    form = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": wanted}}
    fields = {"temperature": 1, "top_p": 1, "seed": number, "max_tokens": MAX_TOKENS}
    response = server.chat("Make up an example.", model="gpt-3.5-turbo", response_format=form, **fields)
    assert response.status_code == 200, (wanted, response.text)
    choice = response.json()["choices"][0]
    return wanted, choice["message"]["content"], choice["finish_reason"]


def may_be_endless(wanted: dict[str, Any]) -> bool:
    """Whether an answer may be longer than max_tokens: a chain of any length, a fraction of any length."""
    text = json.dumps(wanted)
    return any(sign in text for sign in ('"$defs"', '"type": "number"', '"format": "time"'))


def check(server: RunningServer, numbers: range) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: answer_to(server, number), numbers))
    whole = [(wanted, text) for wanted, text, reason in answers if reason == "stop"]
    # Its own idea of a time knows no offset from UTC, which RFC 3339 demands.
    formats = jsonschema.FormatChecker(["date", "uuid", "ipv4"])
    for wanted, text in whole:
        validator = jsonschema.Draft202012Validator(wanted, format_checker=formats)
        validator.validate(json.loads(text))
    cut = [(wanted, text) for wanted, text, reason in answers if reason != "stop"]
    assert [(wanted, text) for wanted, text in cut if not may_be_endless(wanted)] == []
    assert len(whole) >= 0.8 * len(answers)


def test_twenty_schemas_are_kept_to(demo_server: RunningServer) -> None:
    check(demo_server, range(20))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_schemas_are_kept_to(demo_server: RunningServer) -> None:
    check(demo_server, range(300))


class Person(BaseModel):
    """What the SDK's own helper asks for."""

    name: str
    age: int
    is_student: bool


def test_the_sdk_parses_into_its_own_classes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="gpt-3.5-turbo",
        messages=[{"role": "user", "content": "Describe a person named Ann, aged 20."}],
        response_format=Person,
        max_tokens=200,
        temperature=0,
    )
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)


def test_a_stream_under_a_grammar_is_the_same_text(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.completions.create(
            model="gpt-3.5-turbo", prompt="The date is ", temperature=0, max_tokens=20,
            extra_body={"guided_regex": r"\d{4}-\d{2}-\d{2}"}, **more,
        )  # fmt: skip

    whole = ask().choices[0].text
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", whole)
    assert "".join(chunk.choices[0].text for chunk in ask(stream=True) if chunk.choices) == whole


def test_several_answers_each_keep_to_the_form(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="gpt-3.5-turbo", n=4, seed=1, max_tokens=5,
        messages=[{"role": "user", "content": "yes or no?"}],
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )  # fmt: skip
    texts = [choice.message.content for choice in answer.choices]
    assert set(texts) <= {"yes", "no"}
    assert len(texts) == 4


def test_json_mode_gives_an_object(demo_server: RunningServer) -> None:
    response = demo_server.chat(
        "Give me a small JSON object.",
        model="gpt-3.5-turbo",
        max_tokens=300,
        seed=5,
        response_format={"type": "json_object"},
    )
    choice = response.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].startswith("{")
