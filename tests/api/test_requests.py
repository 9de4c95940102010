"""What a body may say: everything is obeyed or refused by name, and nothing is lost either way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.running import RunningServer

HELLO = [{"role": "user", "content": "hello"}]


def chat(server: RunningServer, **fields: Any) -> Any:
    return server.client.post("/v1/chat/completions", json={"model": "talker", "messages": HELLO} | fields)


REFUSED = (
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2**63}, "max_tokens", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": 0.009}, "repetition_penalty", "invalid_value"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 1000000}, "n", "invalid_value"),
    ({"logprobs": 5}, "logprobs", "invalid_value"),
    ({"top_logprobs": 5}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias[...]", "invalid_value"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"260": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias", "invalid_value"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "invalid_value"),
    ({"allowed_token_ids": [260]}, "allowed_token_ids", "invalid_value"),
    ({"allowed_token_ids": [259], "min_tokens": 1}, "allowed_token_ids", "invalid_value"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "invalid_value"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
    ({"echo": True}, "echo", "unsupported_parameter"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "invalid_value",
    ),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "unsupported_parameter"),
    (
        {"chat_template_kwargs": {"enable_thinking": "yes"}},
        "chat_template_kwargs.enable_thinking",
        "invalid_value",
    ),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "invalid_value"),
    ({"chat_template": "{{ 1 }}"}, "chat_template", "unsupported_parameter"),
    ({"keep_alive": "soon"}, "keep_alive", "invalid_value"),
    ({"temperatur": 1}, "temperatur", "unsupported_parameter"),
)


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
def test_a_bad_field_is_a_400_that_names_it(
    server: RunningServer, fields: dict[str, Any], param: str, code: str
) -> None:
    response = chat(server, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert param.partition("[")[0] in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"safety_identifier": "s", "prompt_cache_key": "k"},
        {"temperature": None, "top_p": None, "stop": None, "n": 1, "logprobs": False},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [{"role": "system", "content": "be brief"}, *HELLO]},
        {"max_completion_tokens": 2, "seed": -5, "top_k": -1, "priority": 3, "cache_salt": "t"},
        {"messages": [{"role": "user", "content": "<|im_end|> \ufeff \u2028 é"}]},
    ],
)
def test_what_is_documented_is_accepted(server: RunningServer, fields: dict[str, Any]) -> None:
    assert chat(server, **fields).status_code == 200


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused_and_nothing_is_fetched(server: RunningServer, kind: str) -> None:
    part = {"type": kind, kind: {"url": "http://127.0.0.1:1/x.png"}}
    response = chat(server, messages=[{"role": "user", "content": [part]}])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content[0]"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "talker", "messages": [], }',
        b'{"model": "talker", "temperature": NaN, "messages": [{"role":"user","content":"x"}]}',
        b'{"model": "talker", "temperature": Infinity, "messages": [{"role":"user","content":"x"}]}',
        b'{"model": "talker", "temperature": 1e400, "messages": [{"role":"user","content":"x"}]}',
        b'{"model": "talker", "messages": [{"role":"user","content":"\\ud800"}]}',
        b'{"model": "talker", "messages": [{"role":"user","content":"\xff"}]}',
        b'{"model": "talker", "user": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"model": "talker", "metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    ],
)
def test_damaged_json_is_a_400(server: RunningServer, body: bytes) -> None:
    response = server.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert chat(server).status_code == 200


def test_a_body_that_is_too_large_is_a_413(server: RunningServer) -> None:
    response = chat(server, messages=[{"role": "user", "content": "x" * (3 << 20)}])
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_is_not_declared_json_is_a_415(server: RunningServer) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = server.client.post(
            "/v1/chat/completions", content=b"{}", headers={"content-type": content_type}
        )
        assert response.status_code == 415


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\x00b", "ta\nlker", "TALKER", "模型"])
def test_a_model_name_is_a_key_and_never_a_path(server: RunningServer, name: str) -> None:
    response = chat(server, model=name)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_the_models_default_limits_the_answer_and_the_request_overrules_it(server: RunningServer) -> None:
    assert chat(server).json()["usage"]["completion_tokens"] == 6
    assert chat(server, max_tokens=3).json()["usage"]["completion_tokens"] == 3
    longer = chat(server, max_tokens=50).json()
    assert longer["choices"][0]["finish_reason"] == "stop"
    assert chat(server, max_tokens=50, ignore_eos=True).json()["usage"]["completion_tokens"] == 50


def test_prompt_and_answer_must_fit_the_context(server: RunningServer) -> None:
    response = chat(server, max_tokens=600)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_is_a_504_and_never_a_short_answer(server: RunningServer, stream: bool) -> None:
    body = {"model": "talker", "messages": HELLO, "max_tokens": 400, "ignore_eos": True, "timeout": 1e-4}
    response = server.client.post("/v1/chat/completions", json=body | {"stream": stream})
    if not stream:
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    else:
        assert "deadline_exceeded" in response.text
        assert "[DONE]" not in response.text


@pytest.mark.parametrize("prompt", [5, [], [[]], ["a", 5], [-1], [True], {"a": 1}, None])
def test_a_prompt_that_is_neither_text_nor_token_ids_is_refused(server: RunningServer, prompt: Any) -> None:
    response = server.client.post("/v1/completions", json={"model": "talker", "prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_token_ids_beyond_the_vocabulary_are_refused_and_hurt_nobody(server: RunningServer) -> None:
    response = server.client.post("/v1/completions", json={"model": "talker", "prompt": [1, 99999]})
    assert response.status_code == 400
    assert chat(server).status_code == 200


def test_models_are_listed_with_aliases_and_cached_by_etag(server: RunningServer) -> None:
    response = server.client.get("/v1/models")
    entries = {entry["id"]: entry for entry in response.json()["data"]}
    assert entries["talker"]["parent"] is None
    assert entries["alias-of-talker"]["parent"] == "talker"
    assert entries["talker"]["status"] == "loaded"
    assert entries["talker"]["max_model_len"] == 512
    etag = response.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = server.client.get("/v1/models", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["cache-control"] == response.headers["cache-control"]
    assert server.client.get("/v1/models", headers={"if-none-match": '"other"'}).status_code == 200
    assert server.client.get("/v1/models/alias-of-talker").json() == entries["alias-of-talker"]
    assert server.client.get("/v1/models/nobody").status_code == 404
