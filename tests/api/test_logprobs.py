"""Log-probabilities in the shapes of OpenAI and vLLM, for whole answers and streams."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from inference_server.api.schemas.logprobs import (
    prompt_logprobs,
    whole_chat_logprobs,
    whole_completion_logprobs,
)
from inference_server.config.catalog import ModelSpec
from inference_server.generation.detokenizer import Detokenizer
from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.scores import TOKENS_PER_TURN, SharedPrompt
from inference_server.types import TokenScore
from tests.api.server import Server, events, run
from tests.generation.fakes import EOS
from tests.generation.tokenizers import byte_level, write_folder


def entry(token: str, logprob: float = -1.0) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def test_a_chats_tokens_come_with_bytes_and_the_likeliest_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).chat(logprobs=True, top_logprobs=2, max_tokens=2)).json()
        assert body["choices"][0]["logprobs"] == {
            "content": [
                {**entry("H"), "top_logprobs": [entry("H"), entry("?", -2.0)]},
                {**entry("e"), "top_logprobs": [entry("e"), entry("?", -2.0)]},
            ],
            "refusal": None,
        }

    run(scenario())


def test_without_top_logprobs_only_the_chosen_tokens_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).chat(logprobs=True)).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert "".join(token["token"] for token in content) == "Hello, world."
        assert all(token["top_logprobs"] == [] for token in content)

    run(scenario())


def test_chunks_of_a_chat_hold_the_tokens_of_their_text(tmp_path: Path) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).chat(logprobs=True, stream=True)
        choices = [chunk["choices"][0] for chunk in events(response.text) if chunk != "[DONE]"]
        with_text = [choice for choice in choices if choice["delta"].get("content")]
        assert len(with_text) == 13
        for choice in with_text:
            tokens = [token["token"] for token in choice["logprobs"]["content"]]
            assert "".join(tokens) == choice["delta"]["content"]

    run(scenario())


def test_tokens_are_held_back_with_their_text_and_none_leaks_past_a_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        whole = (await server.chat(logprobs=True, stop=["wor"])).json()["choices"][0]
        assert whole["message"]["content"] == "Hello, "
        assert "".join(token["token"] for token in whole["logprobs"]["content"]) == "Hello, "
        assert whole["stop_reason"] == "wor"
        response = await server.chat(logprobs=True, stop=["wor"], stream=True)
        choices = [chunk["choices"][0] for chunk in events(response.text) if chunk != "[DONE]"]
        tokens = [token["token"] for choice in choices if choice["logprobs"] for token in
                  choice["logprobs"]["content"]]  # fmt: skip
        assert "".join(tokens) == "Hello, "

    run(scenario())


def test_a_completions_tokens_come_in_openais_older_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).complete(logprobs=1, max_tokens=2)).json()
        assert body["choices"][0]["logprobs"] == {
            "tokens": ["H", "e"],
            "token_logprobs": [-1.0, -1.0],
            "top_logprobs": [{"H": -1.0}, {"e": -1.0}],
            "text_offset": [0, 1],
        }

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_is_told_with_its_tokens(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).complete(
            prompt="a\u00e9b", echo=True, logprobs=0, max_tokens=2, n=2, stream=stream
        )
        for index in (0, 1):
            choices = (
                [chunk["choices"][0] for chunk in events(response.text) if chunk != "[DONE]"]
                if stream
                else response.json()["choices"]
            )
            own = [choice for choice in choices if choice["index"] == index]
            assert "".join(choice["text"] for choice in own) == "a\u00e9bHe"
            told = {name: [item for choice in own for item in choice["logprobs"][name]] for name in
                    ("tokens", "token_logprobs", "top_logprobs", "text_offset")}  # fmt: skip
            assert told["tokens"] == ["a", "\\xc3", "\\xa9", "b", "H", "e"]
            assert told["token_logprobs"] == [None, -1.0, -1.0, -1.0, -1.0, -1.0]
            assert told["top_logprobs"][:2] == [None, {"\\xc3": -1.0}]
            assert told["text_offset"] == [0, 1, 1, 2, 3, 4]

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", "a\u00e9b"])
def test_the_end_token_has_an_entry_beside_an_echoed_prompt(
    tmp_path: Path, prompt: str, stream: bool
) -> None:
    """A harness sums all entries but the last one: were there none for it, it would leave out a real one."""

    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).tokens = [EOS]
        response = await server.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=1, stream=stream)
        choice = (events(response.text)[0] if stream else response.json())["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (prompt, "stop")
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(prompt.encode()) + 1
        assert (told["tokens"][-1], told["token_logprobs"][-1]) == ("<|im_end|>", -1.0)
        assert told["top_logprobs"][-1] == {"<|im_end|>": -1.0}
        assert told["text_offset"][-1] == len(prompt)

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_every_token_of_a_completion_has_one_entry(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        for fields, text, tokens in (
            ({}, "Hello, world.", [*"Hello, world.", "<|im_end|>"]),
            ({"include_stop_str_in_output": True}, None, [*"Hello, world.", "<|im_end|>"]),
            ({"stop": "wor"}, "Hello, ", [*"Hello, "]),
            ({"max_tokens": 2}, "He", ["H", "e"]),
        ):
            response = await server.complete(logprobs=0, stream=stream, **fields)
            choices = (
                [chunk["choices"][0] for chunk in events(response.text) if chunk != "[DONE]"]
                if stream
                else response.json()["choices"]
            )
            assert text is None or "".join(choice["text"] for choice in choices) == text
            assert [token for choice in choices for token in choice["logprobs"]["tokens"]] == tokens

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_of_one_token_has_no_scores_to_wait_for(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        response = await Server(tmp_path).complete(
            prompt="a", echo=True, logprobs=0, max_tokens=2, stream=stream, timeout=10
        )
        body = events(response.text)[0] if stream else response.json()
        told = body["choices"][0]["logprobs"]
        assert (told["tokens"][0], told["token_logprobs"][0]) == ("a", None)

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_echoed_prompt_is_told_piece_by_piece_and_whole(tmp_path: Path, stream: bool) -> None:
    num_tokens = 2 * TOKENS_PER_TURN + 3
    prompt = "".join(chr(97 + number % 26) for number in range(num_tokens))

    async def scenario() -> None:
        server = Server(tmp_path, demo=ModelSpec(name="demo", source="scripted", max_model_len=4096))
        fields = {"prompt": prompt, "echo": True, "logprobs": 2, "stream": stream}
        for max_tokens, answer in ((0, ""), (2, "He")):
            response = await server.complete(max_tokens=max_tokens, **fields)
            choices = (
                [chunk["choices"][0] for chunk in events(response.text) if chunk != "[DONE]"]
                if stream
                else response.json()["choices"]
            )
            if stream:
                assert all(len(choice["logprobs"]["tokens"]) <= TOKENS_PER_TURN + 1 for choice in choices)
            assert "".join(choice["text"] for choice in choices) == prompt + answer
            told = {name: [item for choice in choices for item in choice["logprobs"][name]] for name in
                    ("tokens", "token_logprobs", "top_logprobs", "text_offset")}  # fmt: skip
            assert "".join(told["tokens"]) == prompt + answer
            assert told["text_offset"] == list(range(num_tokens + len(answer)))
            assert told["top_logprobs"][1] == {"b": -1.0, "?": -2.0}
            assert told["token_logprobs"] == [None, *[-1.0] * (num_tokens + len(answer) - 1)]
            assert [choice["finish_reason"] for choice in choices][-1] == "length"

    run(scenario())


def test_too_many_scores_of_prompts_are_refused_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path, demo=ModelSpec(name="demo", source="scripted", max_model_len=4096))
        await server.warm()
        response = await server.complete(prompt=[[97] * 4000] * 64, prompt_logprobs=20, max_tokens=1)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_logprobs")
        assert not server.worker.seen

    run(scenario())


def test_others_have_turns_while_many_scores_are_taken_and_told(tmp_path: Path) -> None:
    num_tokens = 10 * TOKENS_PER_TURN
    template = PromptTemplate(write_folder(tmp_path, byte_level()))
    prompt = SharedPrompt([5] * num_tokens, "", template.texts, lambda: Detokenizer(template.tokenizer, ()))

    async def num_turns(work: Coroutine[Any, Any, object]) -> int:
        task, number = asyncio.create_task(work), 0
        while not task.done():
            await asyncio.sleep(0)
            number += 1
        await task
        return number

    async def scenario() -> None:
        assert await num_turns(prompt.add([TokenScore(-1.0, 1, ())] * (num_tokens - 1))) >= 10
        for tell in (prompt_logprobs, whole_chat_logprobs, whole_completion_logprobs):
            assert await num_turns(tell(prompt.tokens)) >= 10

    run(scenario())


def test_max_tokens_0_with_echo_scores_the_prompt_and_says_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).complete(prompt="abc", echo=True, logprobs=0, max_tokens=0)).json()
        choice = body["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
        assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
        assert body["usage"]["completion_tokens"] == 0

    run(scenario())


def test_a_prompt_of_token_ids_is_echoed_as_text(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await Server(tmp_path).complete(prompt=[104, 105], echo=True, max_tokens=2)).json()
        assert body["choices"][0]["text"] == "hiHe"
        assert body["choices"][0]["logprobs"] is None

    run(scenario())


def test_prompt_logprobs_have_vllms_shape_and_cost_one_answer_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        body = (await server.complete(prompt="ab", prompt_logprobs=2, n=2, max_tokens=1)).json()
        expected = {
            "98": {"logprob": -1.0, "rank": 1, "decoded_token": "b"},
            "63": {"logprob": -2.0, "rank": 2, "decoded_token": "?"},
        }
        assert [choice["prompt_logprobs"] for choice in body["choices"]] == [[None, expected]] * 2
        assert [choice["logprobs"] for choice in body["choices"]] == [None, None]
        wanted = sorted(str(seen.sampling.prompt_logprobs) for seen in server.worker.seen)
        assert wanted == ["2", "None"]
        body = (await server.complete(prompt=["a", "ab"], prompt_logprobs=2, max_tokens=1)).json()
        assert [choice["prompt_logprobs"] for choice in body["choices"]] == [[None], [None, expected]]
        chat = (await server.chat(prompt_logprobs=0, max_tokens=1)).json()
        assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]

    run(scenario())


def test_who_does_not_ask_costs_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        body = (await server.complete()).json()
        assert "prompt_logprobs" not in body["choices"][0]
        sampling = server.worker.seen[0].sampling
        assert (sampling.logprobs, sampling.prompt_logprobs) == (None, None)

    run(scenario())
