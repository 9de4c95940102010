"""What the prefix cache and speculation did, as clients and dashboards see it: a server, scripted models."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.server.running import RunningServer, running_server

CONFIG = """
models:
  plain: {source: "scripted:?output_tokens=4", preload: true}
  guessing:
    source: "scripted:?reply=abcdefgh&output_tokens=100000&max_in_flight=2"
    preload: true
    speculation: prompt-lookup
"""
BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    config = tmp_path_factory.mktemp("prefix-cache") / "models.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with running_server(config) as running:
        yield running


def counter(server: RunningServer, name: str, model: str = "plain") -> int:
    """A total of one model; 0 before its first step."""
    for line in server.client.get("/metrics").text.splitlines():
        if line.startswith(f'{name}_total{{model_name="{model}"}}'):
            return int(float(line.rpartition(" ")[2]))
    return 0


def usage_of_stream(server: RunningServer, content: str) -> dict[str, dict[str, int]]:
    body = {
        "model": "plain",
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    usage: dict[str, dict[str, int]] = json.loads(lines[-1])["usage"]
    return usage


def test_usage_and_counters_tell_how_much_of_each_prompt_was_cached(server: RunningServer) -> None:
    before = [counter(server, f"vllm:prefix_cache_{name}") for name in ("queries", "hits")]
    content = "a prompt that is sent three times and fills some blocks of the cache " * 4
    first = server.chat(content, model="plain").json()["usage"]
    second = server.chat(content, model="plain").json()["usage"]
    streamed = usage_of_stream(server, content)
    num_prompt_tokens = first["prompt_tokens"]
    num_cached = (num_prompt_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert num_cached > 200
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"] == {"cached_tokens": num_cached}
    assert streamed["prompt_tokens_details"] == {"cached_tokens": num_cached}
    after = [counter(server, f"vllm:prefix_cache_{name}") for name in ("queries", "hits")]
    assert after[0] - before[0] == 3 * num_prompt_tokens
    assert after[1] - before[1] == 2 * num_cached


def test_two_tenants_do_not_see_each_others_blocks(server: RunningServer) -> None:
    content = "a secret of one tenant, long enough to fill a few blocks of the prefix cache"

    def cached(salt: str) -> int:
        usage = server.chat(content, model="plain", cache_salt=salt).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert [cached("one") > 0, cached("one") > 0, cached("two") > 0] == [False, True, False]


def test_guesses_are_counted_and_the_answer_is_the_models_own(server: RunningServer) -> None:
    answer = server.chat("go on", model="guessing", max_tokens=200, ignore_eos=True).json()
    assert answer["choices"][0]["message"]["content"] == "abcdefgh" * 25
    assert answer["usage"]["completion_tokens"] == 200
    num_drafted = counter(server, "vllm:spec_decode_num_draft_tokens", "guessing")
    num_accepted = counter(server, "vllm:spec_decode_num_accepted_tokens", "guessing")
    assert num_drafted >= num_accepted > 100
    assert counter(server, "vllm:spec_decode_num_draft_tokens") == 0


def test_a_stop_string_inside_accepted_guesses_ends_the_answer_there(server: RunningServer) -> None:
    answer = server.chat("go on", model="guessing", max_tokens=200, stop=["hab"], ignore_eos=True).json()
    assert answer["choices"][0]["message"]["content"] == "abcdefg"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 10
