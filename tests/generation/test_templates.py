"""Tokenizers are read once, kept within bounds, and long prompts leave the loop free."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference_server.errors import ModelLoadFailed
from inference_server.generation.prompt import PromptTemplate
from inference_server.generation.requests import ChatPrompt, TextPrompt, TokenPrompt
from inference_server.generation.templates import Templates
from tests.generation.tokenizers import byte_level, write_folder


def test_a_folder_is_read_once_for_all_who_wait_and_a_leaver_does_not_stop_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level())
    reads: list[Path] = []

    def read(path: Path) -> PromptTemplate:
        reads.append(path)
        return PromptTemplate(path)

    async def scenario() -> None:
        templates = Templates(read)
        leaver = asyncio.create_task(templates.get(str(folder)))
        await asyncio.sleep(0)
        leaver.cancel()
        first, second = await asyncio.gather(templates.get(str(folder)), templates.get(str(folder)))
        assert first is second is await templates.get(str(folder))

    asyncio.run(scenario())
    assert len(reads) == 1


def test_the_least_recently_used_template_leaves(tmp_path: Path) -> None:
    folders = [str(write_folder(tmp_path / name, byte_level())) for name in "abc"]

    async def scenario() -> None:
        templates = Templates(max_entries=2)
        first = await templates.get(folders[0])
        second = await templates.get(folders[1])
        assert await templates.get(folders[0]) is first
        await templates.get(folders[2])
        assert await templates.get(folders[0]) is first
        assert await templates.get(folders[1]) is not second

    asyncio.run(scenario())


def test_a_failed_read_is_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        templates = Templates()
        with pytest.raises(ModelLoadFailed):
            await templates.get(str(tmp_path))
        write_folder(tmp_path, byte_level())
        assert (await templates.get(str(tmp_path))).has_chat_template

    asyncio.run(scenario())


def called(arguments: object) -> dict[str, object]:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": arguments}}]}


LONG_CHATS = (
    ChatPrompt(({"role": "user", "content": ""},) * 10),
    ChatPrompt((called("x" * 101),)),
    ChatPrompt((called({"x" * 101: 1}),)),
    ChatPrompt((called([[]] * 101),)),
    ChatPrompt((called([""] * 101),)),
    ChatPrompt((called(10**400),)),
    ChatPrompt(({"role": "assistant", "content": "", "reasoning_content": "x" * 101},)),
    ChatPrompt(({"role": "user", "content": ""},), tools=({"function": {"name": "x" * 101}},)),
    ChatPrompt(({"role": "user", "content": ""},), variables={"date_string": "x" * 101}),
)


def test_short_prompts_are_encoded_on_the_loop_and_long_ones_in_a_thread(tmp_path: Path) -> None:
    template = PromptTemplate(write_folder(tmp_path, byte_level()))
    threads: list[str] = []

    class Watching:
        def encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
            threads.append(threading.current_thread().name)
            return template.encode_text(text, add_special_tokens=add_special_tokens)

        def encode_chat(self, prompt: ChatPrompt) -> list[int]:
            threads.append(threading.current_thread().name)
            return [1]

    async def scenario() -> None:
        templates = Templates(inline_chars=100)
        watching: PromptTemplate = Watching()  # type: ignore[assignment]
        await templates.encode(watching, TextPrompt("short"))
        await templates.encode(watching, ChatPrompt((called({"a": [1, None]}),)))
        await templates.encode(watching, TextPrompt("x" * 101))
        for prompt in LONG_CHATS:
            await templates.encode(watching, prompt)
        assert await templates.encode(watching, TokenPrompt((1, 2))) == (1, 2)

    asyncio.run(scenario())
    assert threads[:2] == ["MainThread"] * 2
    assert all(name.startswith("encode") for name in threads[2:])
    assert len(threads) == 3 + len(LONG_CHATS)


def test_the_spellings_of_many_tokens_are_found_in_a_thread(tmp_path: Path) -> None:
    template = PromptTemplate(write_folder(tmp_path, byte_level()))
    threads: list[str] = []

    class Watching:
        def spelling(self, token_id: int) -> str:
            threads.append(threading.current_thread().name)
            return template.texts.spelling(token_id)

    async def scenario() -> None:
        templates = Templates(inline_chars=2)
        watching = SimpleNamespace(texts=Watching())
        for token_ids in ((1, 5), (1, 5, 5)):
            found = await templates.spellings(watching, token_ids)  # type: ignore[arg-type]
            assert found == tuple(map(template.texts.spelling, token_ids))

    asyncio.run(scenario())
    assert threads[:2] == ["MainThread"] * 2
    assert all(name.startswith("encode") for name in threads[2:])


def test_a_prompt_does_not_wait_for_those_that_take_long(tmp_path: Path) -> None:
    template = PromptTemplate(write_folder(tmp_path, byte_level()))
    held = threading.Event()

    class Slow:
        def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            assert len(text) < 100_000 or held.wait(30)
            return template.encode_text(text, add_special_tokens=add_special_tokens)

    async def scenario() -> None:
        templates = Templates()
        slow: PromptTemplate = Slow()  # type: ignore[assignment]
        long = [asyncio.create_task(templates.encode(slow, TextPrompt("x" * 200_000))) for _ in range(2)]
        long += [asyncio.create_task(templates.encode_texts(slow, ["x" * 200_000])) for _ in range(2)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert await templates.encode(slow, TextPrompt("x" * 5000))
        assert await templates.encode_texts(slow, ["x" * 5000])
        assert not any(task.done() for task in long)
        held.set()
        await asyncio.gather(*long)

    try:
        asyncio.run(scenario())
    finally:
        held.set()


LONG = "The quick brown fox jumps over the lazy dog, and then 42 more of them. " * 12_000


@pytest.mark.parametrize("kind", ["text", "chat", "cut"])
def test_the_loop_goes_on_while_a_long_text_is_encoded(tmp_path: Path, kind: str) -> None:
    """A tokenizer that kept Python's global lock would hold it up for nearly all of the time."""
    template = PromptTemplate(write_folder(tmp_path, byte_level()))

    async def encode(templates: Templates) -> None:
        if kind == "cut":
            await templates.encode_texts(template, [LONG], 8)
        elif kind == "chat":
            await templates.encode(template, ChatPrompt(({"role": "user", "content": LONG},)))
        else:
            await templates.encode(template, TextPrompt(LONG))

    async def scenario() -> None:
        begin_s = last_s = time.perf_counter()
        longest_s = 0.0
        encoding = asyncio.create_task(encode(Templates()))
        while not encoding.done():
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - last_s)
            last_s = time.perf_counter()
        await encoding
        assert longest_s < (last_s - begin_s) / 2

    asyncio.run(scenario())
