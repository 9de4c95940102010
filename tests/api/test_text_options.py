"""Options that decide what of an answer is text, why it ended, and how its prompt is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.server import Server, run

BANG = ord("!")
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] | trim }}/{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{{ 'T' if enable_thinking else 'F' }}"
)


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({}, "Hello, world.", None),
        ({"stop": "wor"}, "Hello, ", "wor"),
        ({"stop": "wor", "include_stop_str_in_output": True}, "Hello, wor", "wor"),
        ({"stop": ["zzz", "lo,", "o"]}, "Hell", "o"),
        ({"max_tokens": 5}, "Hello", None),
    ],
)
def test_a_stop_string_is_named_and_told_if_asked_for(
    tmp_path: Path, fields: dict[str, Any], text: str, reason: str | None
) -> None:
    async def scenario() -> None:
        choice = (await Server(tmp_path).chat(**fields)).json()["choices"][0]
        assert (choice["message"]["content"], choice["stop_reason"]) == (text, reason)

    run(scenario())


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "ab!")])
def test_a_stop_token_is_named_and_told_if_asked_for(tmp_path: Path, include: bool, text: str) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).reply = b"ab!"
        server.worker.end_token = BANG
        choice = (
            await server.chat(stop_token_ids=[BANG], include_stop_str_in_output=include)
        ).json()["choices"][0]  # fmt: skip
        assert choice["message"]["content"] == text
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", BANG)

    run(scenario())


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, "a<|im_start|>b")])
def test_special_tokens_become_text_if_asked_for(tmp_path: Path, skip: bool, text: str) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        (await server.warm()).tokens = [ord("a"), 258, ord("b")]
        choice = (await server.chat(skip_special_tokens=skip)).json()["choices"][0]
        assert choice["message"]["content"] == text

    run(scenario())


def written(server: Server) -> str:
    return bytes(token for token in server.worker.seen[-1].prompt_token_ids if token < 256).decode()


async def templated(tmp_path: Path) -> Server:
    """A server whose model writes conversations with `TEMPLATE`."""
    server = Server(tmp_path)
    folder = Path(await server.manager.folder("demo"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return server


def test_the_last_message_can_be_continued(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is "}]

    async def scenario() -> None:
        server = await templated(tmp_path)
        await server.chat(messages=messages, continue_final_message=True)
        assert written(server) == "[user]hi/[assistant]It is "
        await server.chat(messages=messages, add_generation_prompt=False)
        assert written(server) == "[user]hi/[assistant]It is/F"

    run(scenario())


def test_allowed_variables_reach_the_template_and_no_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = await templated(tmp_path)
        await server.chat(chat_template_kwargs={"enable_thinking": True})
        assert written(server) == "[user]hi/[assistant]T"
        for name in ("messages", "bos_token", "tools", "range", "raise_exception", "x"):
            response = await server.chat(chat_template_kwargs={name: True})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == f"chat_template_kwargs.{name}"

    run(scenario())


def test_a_template_that_drops_the_last_message_cannot_continue_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(tmp_path)
        folder = Path(await server.manager.folder("demo"))
        (folder / "chat_template.jinja").write_text("nothing", encoding="utf-8")
        response = await server.chat(continue_final_message=True)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "continue_final_message"

    run(scenario())
