"""What sampling options mean, through the official SDK, on the real small model in float32."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.demo import DEMO_MODEL
from tests.server.running import RunningServer

pytestmark = pytest.mark.model
QUESTION = "What is the capital of France? One sentence."
COUNT = "One, two, three, four,"


@pytest.fixture
def client(demo_server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, timeout=600)


def chat(client: openai.OpenAI, text: str = "Write a sentence about the sea.", **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=DEMO_MODEL, messages=messages, **fields)


def complete(client: openai.OpenAI, prompt: Any = COUNT, **fields: Any) -> Any:
    return client.completions.create(model=DEMO_MODEL, prompt=prompt, **fields)


def texts(answer: Any) -> list[str]:
    return [choice.message.content or "" for choice in answer.choices]


def ids_of(server: RunningServer, text: str) -> list[int]:
    body = {"model": DEMO_MODEL, "prompt": text, "add_special_tokens": False}
    found: list[int] = server.client.post("/tokenize", json=body).json()["tokens"]
    return found


def test_n_answers_differ_and_each_is_repeated_by_its_seed(client: openai.OpenAI) -> None:
    first = chat(client, n=3, seed=5, temperature=1, max_tokens=12)
    assert len(set(texts(first))) == 3
    assert texts(chat(client, n=3, seed=5, temperature=1, max_tokens=12)) == texts(first)
    alone = [texts(chat(client, seed=seed, temperature=1, max_tokens=12))[0] for seed in (5, 6, 7)]
    assert alone == texts(first)
    assert first.usage.prompt_tokens < 60  # counted once
    assert first.usage.completion_tokens <= 36


def test_a_seed_gives_the_same_text_in_any_company(client: openai.OpenAI) -> None:
    alone = texts(chat(client, seed=11, temperature=1.3, max_tokens=24))
    with ThreadPoolExecutor(12) as pool:
        company = [
            pool.submit(chat, client, f"Story {number}", temperature=1, max_tokens=30) for number in range(11)
        ]
        again = pool.submit(chat, client, seed=11, temperature=1.3, max_tokens=24)
        assert texts(again.result()) == alone
        assert all(future.result().choices for future in company)


def test_log_probabilities_of_a_chat_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    choice = chat(client, temperature=0, max_tokens=8, logprobs=True, top_logprobs=5).choices[0]
    content = choice.logprobs.content
    assert "".join(token.token for token in content) == choice.message.content
    for token in content:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 5
        assert token.top_logprobs[0].logprob == max(entry.logprob for entry in token.top_logprobs)
        assert token.top_logprobs[0].token == token.token  # greedy
        assert 0 < sum(math.exp(entry.logprob) for entry in token.top_logprobs) <= 1.0001


def test_log_probabilities_are_of_the_raw_distribution(client: openai.OpenAI) -> None:
    fields = {"max_tokens": 1, "logprobs": True, "top_logprobs": 3}
    plain = chat(client, temperature=0, **fields).choices[0].logprobs.content[0].top_logprobs
    hot = chat(client, temperature=2, seed=1, **fields).choices[0].logprobs.content[0].top_logprobs
    assert [entry.token for entry in hot] == [entry.token for entry in plain]
    assert [entry.logprob for entry in hot] == pytest.approx([e.logprob for e in plain], abs=1e-4)


def test_a_completions_log_probabilities_have_the_older_shape(client: openai.OpenAI) -> None:
    choice = complete(client, temperature=0, max_tokens=5, logprobs=3).choices[0]
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 5
    offsets = [sum(map(len, told.tokens[:index])) for index in range(5)]
    assert [offset - told.text_offset[0] for offset in told.text_offset] == offsets


def test_an_echoed_prompt_is_scored_as_the_model_reads_it(client: openai.OpenAI) -> None:
    choice = complete(client, echo=True, max_tokens=3, temperature=0, logprobs=1).choices[0]
    assert choice.text.startswith(COUNT)
    told = choice.logprobs
    assert told.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in told.token_logprobs[1:])
    scored = complete(client, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0})
    of_prompt = scored.choices[0].model_extra["prompt_logprobs"]
    found = [next(iter(entry.values()))["logprob"] for entry in of_prompt[1:]]
    assert found == pytest.approx(told.token_logprobs[1 : len(of_prompt)], abs=1e-4)


def test_the_best_of_several_is_the_likeliest(client: openai.OpenAI) -> None:
    best = complete(client, best_of=4, n=1, temperature=1, seed=3, max_tokens=6, logprobs=0)
    others = [
        complete(client, temperature=1, seed=3 + number, max_tokens=6, logprobs=0) for number in range(4)
    ]

    def mean(answer: Any) -> float:
        found = answer.choices[0].logprobs.token_logprobs
        return float(sum(found) / len(found))

    assert mean(best) == pytest.approx(max(mean(other) for other in others), abs=1e-4)
    assert best.usage.completion_tokens == sum(other.usage.completion_tokens for other in others)


def test_biases_forbid_and_force_tokens(client: openai.OpenAI, demo_server: RunningServer) -> None:
    plain = complete(client, temperature=0, max_tokens=1).choices[0].text
    (forbidden,) = ids_of(demo_server, plain)
    (forced,) = ids_of(demo_server, " cat")
    assert (
        complete(client, temperature=0, max_tokens=1, logit_bias={str(forbidden): -100}).choices[0].text
        != plain
    )
    text = complete(client, temperature=0, max_tokens=4, logit_bias={str(forced): 100}).choices[0].text
    assert text == " cat" * 4
    allowed = {"allowed_token_ids": [forced, forbidden]}
    for choice in complete(client, n=4, temperature=2, max_tokens=4, extra_body=allowed).choices:
        assert set(choice.text.replace(" cat", "").replace(plain, "")) == set()


def test_penalties_end_repetition(client: openai.OpenAI, demo_server: RunningServer) -> None:
    (cat,) = ids_of(demo_server, " cat")
    bias = {str(cat): 30}
    repeats = complete(client, " cat cat cat", temperature=0, max_tokens=12, logit_bias=bias)
    assert repeats.choices[0].text == " cat" * 12
    # A frequency penalty grows with each cat, and overcomes any bias in the end.
    fewer = complete(client, " cat", temperature=0, max_tokens=40, logit_bias=bias, frequency_penalty=2)
    assert 5 < fewer.choices[0].text.count(" cat") < 30
    again = " five," * 12
    assert complete(client, again, temperature=0, max_tokens=1).choices[0].text == " five"
    penalty = {"repetition_penalty": 2.0}
    assert complete(client, again, temperature=0, max_tokens=1, extra_body=penalty).choices[0].text != " five"


def test_an_answer_may_be_made_longer_or_endless(client: openai.OpenAI, demo_server: RunningServer) -> None:
    short = chat(client, QUESTION, temperature=0, max_tokens=60)
    num_tokens = short.usage.completion_tokens
    assert short.choices[0].finish_reason == "stop"
    longer = chat(client, QUESTION, temperature=0, max_tokens=80, extra_body={"min_tokens": num_tokens + 5})
    assert longer.usage.completion_tokens >= num_tokens + 5
    endless = chat(client, QUESTION, temperature=0, max_tokens=70, extra_body={"ignore_eos": True})
    assert (endless.usage.completion_tokens, endless.choices[0].finish_reason) == (70, "length")


@pytest.mark.parametrize("stop", ["seven", " seven, ei", "en, e", ", s"])
def test_a_stop_string_across_tokens_never_leaks(client: openai.OpenAI, stop: str) -> None:
    whole = complete(client, temperature=0, max_tokens=20).choices[0].text
    assert stop in whole
    expected = whole[: whole.index(stop)]
    assert complete(client, temperature=0, max_tokens=20, stop=stop).choices[0].text == expected
    streamed = ""
    for chunk in complete(client, temperature=0, max_tokens=20, stop=[stop, "zzz"], stream=True):
        streamed += chunk.choices[0].text
        assert expected.startswith(streamed)
    assert streamed == expected
    kept = complete(
        client, temperature=0, max_tokens=20, stop=stop, extra_body={"include_stop_str_in_output": True}
    )
    assert kept.choices[0].text == expected + stop


def test_a_stop_token_ends_the_answer_without_its_text(
    client: openai.OpenAI, demo_server: RunningServer
) -> None:
    (seven,) = ids_of(demo_server, " seven")
    choice = complete(client, temperature=0, max_tokens=20, extra_body={"stop_token_ids": [seven]}).choices[0]
    assert (choice.text, choice.finish_reason) == (" five, six,", "stop")
    assert choice.model_extra["stop_reason"] == seven


def test_several_prompts_are_answered_each_in_its_place(client: openai.OpenAI) -> None:
    prompts = [COUNT, "The capital of France is", "Red, green, blue,"]
    together = complete(client, prompts, temperature=0, max_tokens=5)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    alone = [complete(client, prompt, temperature=0, max_tokens=5).choices[0].text for prompt in prompts]
    assert [choice.text for choice in together.choices] == alone


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"extra_body": {"min_tokens": 10}, "max_tokens": 5}, "min_tokens"),
        ({"extra_body": {"chat_template": "x"}}, "chat_template"),
    ],
)
def test_what_cannot_be_is_the_sdks_bad_request_with_its_field(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert caught.value.param == param
