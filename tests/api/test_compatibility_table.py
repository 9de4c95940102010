"""`docs/openai-compatibility.md` against the schemas and a server: every field is told, and told truly."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from inference_server import errors
from inference_server.api.errors import STATUS
from inference_server.api.schemas.anthropic import MessagesRequest
from inference_server.api.schemas.chat import ChatRequest, Message
from inference_server.api.schemas.completions import CompletionRequest
from inference_server.api.schemas.embeddings import EmbeddingsRequest
from inference_server.api.schemas.responses import ResponsesRequest
from tests.demo import REPOSITORY
from tests.server.running import RunningServer

_ROW = re.compile(r"^\| (`[^|]*`) \| ([^|]*) \|", re.MULTILINE)
_NAME = re.compile(r"`([a-z_]+)(?:\.[a-z_]+)?`")
TEXT = (REPOSITORY / "docs" / "openai-compatibility.md").read_text(encoding="utf-8")

BOTH = ("Both endpoints",)
SECTIONS: dict[str, tuple[type[msgspec.Struct], tuple[str, ...]]] = {
    "chat": (ChatRequest, (*BOTH, "Chat only")),
    "completions": (CompletionRequest, (*BOTH, "Completions only")),
    "embeddings": (EmbeddingsRequest, ("Embeddings",)),
    "responses": (ResponsesRequest, ("Responses",)),
    "messages": (MessagesRequest, ("Messages",)),
}


def rows(section: str) -> dict[str, str]:
    """Field → what the table of a section says of it."""
    body = TEXT.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    body = body.split("\nMessages:\n", 1)[0]  # the fields of a message are another table
    return {name: status for names, status in _ROW.findall(body) for name in _NAME.findall(names)}


def documented(interface: str) -> dict[str, str]:
    """All of an interface's tables together."""
    return {name: status for section in SECTIONS[interface][1] for name, status in rows(section).items()}


@pytest.mark.parametrize("interface", SECTIONS)
def test_every_field_of_a_schema_is_in_its_table_and_no_other(interface: str) -> None:
    schema, _ = SECTIONS[interface]
    assert set(documented(interface)) == set(schema.__struct_encode_fields__)


def test_every_field_of_a_message_is_in_its_table() -> None:
    table = TEXT.split("\nMessages:\n", 1)[1].split("\n## ", 1)[0]
    told = {name for names, _ in _ROW.findall(table) for name in _NAME.findall(names)}
    assert told == set(Message.__struct_encode_fields__)


def test_every_code_of_an_error_stands_beside_its_status() -> None:
    table = TEXT.split("\n## Errors\n", 1)[1].split("\nThe key travels", 1)[0]
    told = {status: line for line in table.splitlines() for status in re.findall(r"\b[45]\d\d\b", line[:12])}
    bases = {errors.HelixFlowError, errors.OverLimit, errors.Denied, errors.Unavailable, errors.ConfigError}
    for error, (status, _) in STATUS.items():
        assert error in bases or f"`{error.code}`" in told[str(status)], error


MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
REQUIRED: dict[str, dict[str, Any]] = {
    "chat": {"model": "talker", "messages": MESSAGES},
    "completions": {"model": "talker", "prompt": "hi"},
}
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
# What is sent of each field that is supported or accepted, with what it needs beside it.
SAMPLES: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 3},
    "max_completion_tokens": {"max_completion_tokens": 3},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "stop": {"stop": [chr(97 + number) for number in range(16)]},
    "seed": {"seed": 1},
    "presence_penalty": {"presence_penalty": 1},
    "frequency_penalty": {"frequency_penalty": -1},
    "stream": {"stream": True},
    "stream_options": {
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    },
    "n": {"n": 2},
    "logit_bias": {"logit_bias": {"5": 1}},
    "user": {"user": "u"},
    "metadata": {"metadata": {"a": "b"}},
    "service_tier": {"service_tier": "auto"},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "min_tokens": {"min_tokens": 2, "max_tokens": 3},
    "stop_token_ids": {"stop_token_ids": [1]},
    "ignore_eos": {"ignore_eos": True, "max_tokens": 3},
    "priority": {"priority": 1},
    "cache_salt": {"cache_salt": "s"},
    "timeout": {"timeout": 30},
    "skip_special_tokens": {"skip_special_tokens": False},
    "include_stop_str_in_output": {"include_stop_str_in_output": True, "stop": "a"},
    "allowed_token_ids": {"allowed_token_ids": [1, 2]},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "keep_alive": {"keep_alive": "10m"},
    "response_format": {"response_format": {"type": "text"}},
    "add_generation_prompt": {"add_generation_prompt": True},
    "tools": {"tools": [TOOL]},
    "tool_choice": {"tools": [TOOL], "tool_choice": "auto"},
    "parallel_tool_calls": {"tools": [TOOL], "parallel_tool_calls": False},
    "reasoning_effort": {"reasoning_effort": "low"},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 2},
    "store": {"store": False},
    "continue_final_message": {"continue_final_message": True, "add_generation_prompt": False},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "modalities": {"modalities": ["text"]},
    "safety_identifier": {"safety_identifier": "s"},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "prompt_cache_retention": {"prompt_cache_retention": "24h"},
    "echo": {"echo": True},
    "best_of": {"best_of": 2},
}
OF_COMPLETIONS: dict[str, dict[str, Any]] = {"logprobs": {"logprobs": 2}}
# Needs a tokenizer, which the built-in model has not: tried with the real one in tests/server.
ELSEWHERE = {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}


@pytest.mark.parametrize("interface", REQUIRED)
def test_what_is_said_to_be_supported_or_accepted_is(server: RunningServer, interface: str) -> None:
    samples = SAMPLES | (OF_COMPLETIONS if interface == "completions" else {})
    for field, status in documented(interface).items():
        if status.strip() == "400" or field in ELSEWHERE or field in REQUIRED[interface]:
            continue
        sample = samples[field]  # a KeyError: the table has a field that is not tried
        response = server.client.post(PATHS[interface], json=REQUIRED[interface] | sample)
        assert response.status_code == 200, (field, response.text)


@pytest.mark.parametrize("interface", REQUIRED)
def test_what_is_said_to_be_refused_is_and_by_name(server: RunningServer, interface: str) -> None:
    refused = [field for field, status in documented(interface).items() if status.strip() == "400"]
    assert refused
    for field in [*refused, "no_such_field"]:
        for value in ("x", {"a": 1}, [{"a": 1}], 5, True):
            response = server.client.post(PATHS[interface], json=REQUIRED[interface] | {field: value})
            assert response.status_code == 400, (field, value, response.text)
        assert field in (response.json()["error"]["param"] or "") + response.json()["error"]["message"]
