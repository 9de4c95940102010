"""/tokenize and /detokenize give what a request would have, and load no model for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from inference_server import errors
from inference_server.api.turnstile import MAX_AT_ONCE
from tests.api.server import Server, run
from tests.generation.fakes import settle, until


async def tokenize(server: Server, **fields: Any) -> httpx.Response:
    return await server.client.post("/tokenize", json={"model": "demo", **fields})


async def detokenize(server: Server, **fields: Any) -> httpx.Response:
    return await server.client.post("/detokenize", json={"model": "demo", **fields})


def test_a_prompts_tokens_are_counted_and_the_model_stays_where_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        answer = await tokenize(server, prompt="hi\u00e9")
        assert answer.json() == {
            "count": 4, "max_model_len": 256, "tokens": [104, 105, 195, 169], "token_strs": None,
        }  # fmt: skip
        assert not server.launcher.workers
        assert server.manager.status("demo").state == "unloaded"

    run(scenario())


def test_a_conversation_has_the_tokens_that_a_chat_has(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi <|im_end|>"}]

    async def scenario() -> None:
        server = Server(tmp_path)
        tokens = (await tokenize(server, messages=messages)).json()["tokens"]
        await server.chat(messages=messages)
        assert tuple(tokens) == server.worker.seen[0].prompt_token_ids
        shorter = (await tokenize(server, messages=messages, add_generation_prompt=False)).json()["tokens"]
        assert tokens[: len(shorter)] == shorter
        assert len(tokens) > len(shorter)

    run(scenario())


def test_spellings_are_given_when_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        body = (await tokenize(Server(tmp_path), prompt="a b", return_token_strs=True)).json()
        assert body["token_strs"] == ["a", "\u0120", "b"]

    run(scenario())


@pytest.mark.parametrize("text", ["", "plain", "na\u00efve \u65e5\u672c\u8a9e \U0001f600"])
def test_detokenize_undoes_tokenize(tmp_path: Path, text: str) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        tokens = (await tokenize(server, prompt=text)).json()["tokens"]
        assert (await detokenize(server, tokens=tokens)).json() == {"prompt": text}
        assert (await detokenize(server, tokens=[258, 104])).json() == {"prompt": "<|im_start|>h"}

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "unknown": 1}, "unknown"),
        ({"prompt": "a", "model": "nobody"}, "model"),
        (
            {
                "messages": [{"role": "user", "content": "b"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    async def scenario() -> None:
        response = await tokenize(Server(tmp_path), **fields)
        assert response.status_code in (400, 404)
        assert response.json()["error"]["param"] == param

    run(scenario())


@pytest.mark.parametrize("tokens", [[260], [-1], ["a"], None, [2**31]])
def test_what_is_no_token_is_refused_by_name(tmp_path: Path, tokens: Any) -> None:
    async def scenario() -> None:
        response = await detokenize(Server(tmp_path), tokens=tokens)
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("tokens")

    run(scenario())


def test_many_who_ask_at_once_cause_one_fetch_and_who_leaves_does_not_stop_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        prepare, num_fetches, may_end = server.launcher.prepare, 0, asyncio.Event()

        async def slowly(*arguments: Any) -> Any:
            nonlocal num_fetches
            num_fetches += 1
            await may_end.wait()
            return await prepare(*arguments)

        server.launcher.prepare = slowly  # type: ignore[method-assign]
        first, *others = [asyncio.create_task(server.manager.folder("demo")) for _ in range(5)]
        await settle()
        first.cancel()
        may_end.set()
        assert len({await task for task in others}) == 1
        assert num_fetches == 1
        assert (await tokenize(server, prompt="a")).status_code == 200
        assert num_fetches == 1

    run(scenario())


def test_files_that_cannot_be_had_are_a_503_and_are_left_alone_for_a_while(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        num_fetches = 0

        async def fails(*arguments: Any) -> Any:
            nonlocal num_fetches
            num_fetches += 1
            raise errors.FetchFailed("no such repository")

        server.launcher.prepare = fails  # type: ignore[method-assign]
        for _ in range(3):
            response = await tokenize(server, prompt="a")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "model_load_failed")
            assert int(response.headers["retry-after"]) >= 1
        assert num_fetches == 1

    run(scenario())


def test_only_so_many_at_once_and_none_while_the_server_drains(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        due, may_come = server.hold_files()
        tasks = [asyncio.create_task(tokenize(server, prompt="a")) for _ in range(MAX_AT_ONCE)]
        await due.wait()
        await until(lambda: server.sample("active_connections") == MAX_AT_ONCE)
        await settle()
        count = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
        for path, body in (
            ("/tokenize", {"model": "demo", "prompt": "a"}),
            ("/detokenize", {"model": "demo", "tokens": [97]}),
            ("/v1/messages/count_tokens", count),
        ):
            full = await server.client.post(path, json=body)
            assert (full.status_code, full.headers["x-helixflow-error"]) == (429, "queue_full")
            assert int(full.headers["retry-after"]) >= 1
        may_come.set()
        assert {(await task).status_code for task in tasks} == {200}
        assert (await tokenize(server, prompt="a")).status_code == 200
        server.door.shut_down()
        assert (await tokenize(server, prompt="a")).json()["error"]["code"] == "shutting_down"
        assert (await detokenize(server, tokens=[97])).json()["error"]["code"] == "shutting_down"
        counted = await server.client.post("/v1/messages/count_tokens", json=count)
        assert counted.headers["x-helixflow-error"] == "shutting_down"

    run(scenario())
